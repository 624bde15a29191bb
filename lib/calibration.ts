/** What calibration finds about a model's keys and queries, layer by layer, and the file that holds it; infiniGen and sals are built on it. */
import { createHash } from "node:crypto";
import { open, rename, rm, writeFile } from "node:fs/promises";
import { Buffer } from "node:buffer";
import { FormatError, type TensorSpan } from "./formats/checkpoint.ts";
import { readSafetensors } from "./formats/safetensors.ts";

/** A basis for each layer. */
export class LayerBases {
  /** bases[layer]: f32[...shape], directions in columns, the weightiest first. */
  constructor(readonly kind: "skew" | "projection", readonly shape: readonly number[], readonly bases: readonly Float32Array[]) {}

  /** What a saved session keeps of it. */
  toJSON(): { kind: string; shape: readonly number[]; sha256: string } {
    const hash = createHash("sha256");
    for (const basis of this.bases) hash.update(new Uint8Array(basis.buffer, basis.byteOffset, basis.byteLength));
    return { kind: this.kind, shape: this.shape, sha256: hash.digest("hex") };
  }

  /** The basis of a layer; RangeError where it is of another model. */
  at(layer: number, shape: readonly number[]): Float32Array {
    if (String(this.shape) !== String(shape) || layer >= this.bases.length) {
      const found = `${this.bases.length} layers of [${this.shape.join(", ")}]`;
      throw new RangeError(`Cannot use this ${this.kind}: it has ${found}, want layer ${layer} of [${shape.join(", ")}]`);
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

/** What was learnt of a model, layer by layer. */
export interface Calibration {
  /** Rotations of each KV head, f32[kvHeads, headDim, headDim], for infiniGen. */
  readonly skew: LayerBases;
  /** Directions of all heads' keys together before rotation, f32[kvHeads * headDim, kvHeads * headDim], for sals. */
  readonly projection: LayerBases;
}

/** Where `recallkv calibrate` puts the calibration of a model. */
export function calibrationPath(model: string): string {
  return `${model.replace(/[/\\]+$/, "")}.calibration.safetensors`;
}

/** Writes a calibration beside `path` and renames it into place. */
export async function saveCalibration(path: string, calibration: Calibration): Promise<void> {
  const tensors = [calibration.skew, calibration.projection].flatMap(({ kind, shape, bases }) =>
    bases.map((data, layer) => ({ name: `${kind}.${layer}`, shape, data }))
  );
  let offset = 0;
  const entries = tensors.map(({ name, shape, data }) => {
    const begin = offset;
    offset += data.byteLength;
    return [name, { dtype: "F32", shape, data_offsets: [begin, offset] }];
  });
  const json = JSON.stringify(Object.fromEntries(entries));
  const header = new TextEncoder().encode(json + " ".repeat(-json.length & 7));
  const length = new Uint8Array(new BigUint64Array([BigInt(header.length)]).buffer);
  const bytes = tensors.map(({ data }) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  const draft = `${path}.${crypto.randomUUID()}`;
  try {
    await writeFile(draft, Buffer.concat([length, header, ...bytes]));
    await rename(draft, path);
  } catch (error) {
    await rm(draft, { force: true });
    throw error;
  }
}

/** Reads what `saveCalibration` wrote. Errors: FormatError. */
export async function loadCalibration(path: string): Promise<Calibration> {
  const { tensors } = await readSafetensors(path);
  const file = await open(path);
  try {
    const read = async (kind: LayerBases["kind"]) => {
      const spans: TensorSpan[] = [];
      for (let span = tensors.get(`${kind}.0`); span; span = tensors.get(`${kind}.${spans.length}`)) spans.push(span);
      if (spans.length === 0) throw new FormatError(path, `it has no tensor ${kind}.0, want what recallkv calibrate writes`);
      const odd = spans.find(({ shape, type }) => type !== "f32" || String(shape) !== String(spans[0].shape));
      if (odd) {
        throw new FormatError(path, `tensor ${odd.name} is ${odd.type} [${odd.shape.join(", ")}], want f32 [${spans[0].shape.join(", ")}]`);
      }
      const bases = await Promise.all(spans.map(async ({ offset, bytes }) => {
        const data = new Uint8Array(bytes);
        await file.read(data, 0, bytes, offset);
        return new Float32Array(data.buffer);
      }));
      return new LayerBases(kind, spans[0].shape, bases);
    };
    return { skew: await read("skew"), projection: await read("projection") };
  } finally {
    await file.close();
  }
}
