/** Finds the directions in which a model's keys and queries are large, from one text: what infiniGen and sals need. */
import { EigenvalueDecomposition, Matrix } from "ml-matrix";
import { type Calibration, LayerBases } from "./calibration.ts";
import type { LoadedModel } from "./model.ts";
import type { Rows } from "./kv/store.ts";
import type { ModelShape } from "./models/model.ts";
import type { Policy } from "./policies/policy.ts";
import type { Tensor } from "./tensor.ts";
import type { OnProgress } from "./types.ts";

/** How to calibrate. */
export interface CalibrateOptions {
  /** Ends the work early. */
  signal?: AbortSignal;
  /** Is told how far it is. */
  onProgress?: OnProgress;
}

/**
 * Reads `tokens` with full attention and decomposes what it saw, layer by layer.
 * skew: eigenvectors v of the group's queries, ordered by |Q v| |K v| (InfiniGen, arXiv 2406.19707, 4.2, after rotation). projection:
 * eigenvectors of all heads' keys side by side before rotation, not centred (SALS, arXiv 2510.24273, 4.1).
 */
export async function calibrate(model: LoadedModel, tokens: readonly number[], options: CalibrateOptions = {}): Promise<Calibration> {
  const { shape } = model;
  const { signal, onProgress } = options;
  const length = tokens.length;
  if (length < shape.headDim) throw new RangeError(`Cannot calibrate: the text has ${length} tokens, want at least ${shape.headDim}`);
  const seen = new Map<number, { rows: Rows; queries: Tensor }>();
  const watch: Policy = {
    name: "calibrate",
    sink: 0,
    layer(rows, memory) {
      const { heads, headDim } = rows;
      const queries = memory.tensor("f32", [1, length * heads, headDim]);
      seen.set(rows.layer, { rows, queries });
      return {
        select: () => ({}),
        observe: (k, { from, count, q }) => k.copy(queries, from * heads, q, 0, count * heads),
      };
    },
  };
  using session = model.session({ kv: watch, capacity: length, kvDtype: "f32" });
  await session.prefill(tokens, { signal, onProgress });

  const { layers, heads, kvHeads, headDim } = shape;
  const width = kvHeads * headDim;
  const skews: Float32Array[] = [];
  const projections: Float32Array[] = [];
  for (let layer = 0; layer < layers; layer++) {
    signal?.throwIfAborted();
    onProgress?.({ stage: "calibrate", done: layer, total: layers, unit: "layers" });
    const found = seen.get(layer);
    if (!found) { // a layer with a window of its own: every policy leaves it alone
      skews.push(new Float32Array(kvHeads * headDim * headDim));
      projections.push(new Float32Array(width * width));
      continue;
    }
    const queries = await found.queries.read() as Float32Array;
    const keys: Float32Array[] = [];
    for (let h = 0; h < kvHeads; h++) keys.push(await found.rows.keys.read(h * length * headDim, length * headDim) as Float32Array);
    const group = heads / kvHeads;
    skews.push(joined(keys.map((own, h) => {
      const asked = gram(headDim, length * group, (i, into) => {
        const row = Math.floor(i / group) * heads + h * group + i % group;
        into.set(queries.subarray(row * headDim, (row + 1) * headDim));
      });
      const answered = gram(headDim, length, (i, into) => into.set(own.subarray(i * headDim, (i + 1) * headDim)));
      return columns(asked, (value, v) => value * quadratic(answered, v));
    })));
    const together = gram(width, length, (i, into) => {
      for (let h = 0; h < kvHeads; h++) into.set(unrotated(keys[h].subarray(i * headDim, (i + 1) * headDim), i, shape), h * headDim);
    });
    projections.push(columns(together, (value) => value));
  }
  onProgress?.({ stage: "calibrate", done: layers, total: layers, unit: "layers" });
  return {
    skew: new LayerBases("skew", [kvHeads, headDim, headDim], skews),
    projection: new LayerBases("projection", [width, width], projections),
  };
}

/** Sum of x xᵀ over rows of `width` numbers. */
function gram(width: number, rows: number, row: (i: number, into: Float64Array) => void): Matrix {
  const sums = Array.from({ length: width }, () => new Float64Array(width));
  const x = new Float64Array(width);
  for (let i = 0; i < rows; i++) {
    row(i, x);
    for (let a = 0; a < width; a++) {
      const [sum, factor] = [sums[a], x[a]];
      for (let b = 0; b <= a; b++) sum[b] += factor * x[b];
    }
  }
  for (let a = 0; a < width; a++) for (let b = 0; b < a; b++) sums[b][a] = sums[a][b];
  return new Matrix(sums.map((sum) => [...sum]));
}

/** vᵀ m v. */
function quadratic(m: Matrix, v: readonly number[]): number {
  let sum = 0;
  for (let a = 0; a < v.length; a++) for (let b = 0; b < v.length; b++) sum += v[a] * m.get(a, b) * v[b];
  return sum;
}

/** Eigenvectors of a symmetric matrix as columns, by descending weight. */
function columns(m: Matrix, weight: (value: number, vector: number[]) => number): Float32Array {
  const { eigenvectorMatrix: vectors, realEigenvalues: values } = new EigenvalueDecomposition(m, { assumeSymmetric: true });
  const size = m.rows;
  const weights = values.map((value, c) => weight(Math.max(0, value), vectors.getColumn(c)));
  const order = weights.map((_, c) => c).sort((a, b) => weights[b] - weights[a] || a - b);
  return Float32Array.from({ length: size * size }, (_, i) => vectors.get(Math.floor(i / size), order[i % size]));
}

/** A key as it was before it was rotated to `position`. */
function unrotated(key: Float32Array, position: number, { rope }: ModelShape): Float64Array {
  const out = Float64Array.from(key);
  const half = rope.dim / 2;
  for (let i = 0; i < half; i++) {
    const angle = position * rope.inverseFrequencies[i];
    const [c, s] = [Math.cos(angle) / rope.attentionFactor, Math.sin(angle) / rope.attentionFactor];
    out[i] = key[i] * c + key[i + half] * s;
    out[i + half] = key[i + half] * c - key[i] * s;
  }
  return out;
}

function joined(parts: readonly Float32Array[]): Float32Array {
  const all = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
