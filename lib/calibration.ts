/** What calibration finds about a model's keys and queries, layer by layer; infiniGen and sals are built on it. */

/** A basis for each layer. */
export class LayerBases {
  /** bases[layer]: f32[...shape], columns last. */
  constructor(readonly kind: "skew" | "projection", readonly shape: readonly number[], private readonly bases: readonly Float32Array[]) {}

  get layers(): number {
    return this.bases.length;
  }

  /** The basis of a layer; RangeError where it is of another model. */
  at(layer: number, shape: readonly number[]): Float32Array {
    if (this.shape.length !== shape.length || this.shape.some((extent, i) => extent !== shape[i]) || layer >= this.layers) {
      throw new RangeError(
        `Cannot use this ${this.kind}: it has ${this.layers} layers of [${this.shape.join(", ")}], want layer ${layer} of [${
          shape.join(", ")
        }]`,
      );
    }
    return this.bases[layer];
  }

  /** The first `count` columns of a basis [width, n]. */
  leading(layer: number, width: number, count: number): Float32Array {
    const columns = this.shape[1];
    if (count > columns) throw new RangeError(`Cannot use this ${this.kind}: it has ${columns} directions, want at least ${count}`);
    const basis = this.at(layer, [width, columns]);
    return Float32Array.from({ length: width * count }, (_, i) => basis[Math.floor(i / count) * columns + i % count]);
  }
}
