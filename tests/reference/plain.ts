/** What the reference computes on: plain arrays of numbers, whatever their dtype says, and the bundles that ops take. */

export type DType = "f32" | "f16" | "bf16" | "i32" | "u32" | "q8";

/** A row-major array. Every element is held as an f64, integers too. */
export interface Plain {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly data: Float64Array;
}

/** The part of an array that lies under some leading indices; it shares memory with the array. */
export function at(array: Plain, ...place: number[]): Float64Array {
  let begin = 0;
  let size = array.data.length;
  for (let i = 0; i < place.length; i++) {
    size /= array.shape[i];
    begin += place[i] * size;
  }
  return array.data.subarray(begin, begin + size);
}

/** A weight [rows, cols] as a layer uses it (RoPE pairs in halves), or with rows == 1 a vector. */
export interface Matrix {
  readonly rows: number;
  readonly cols: number;
  readonly data: Float64Array;
}

/** One decoder layer; what the model does not have is absent. */
export interface Layer {
  readonly weights:
    & Readonly<Record<"attnNorm" | "q" | "k" | "v" | "o" | "ffnNorm" | "gate" | "up" | "down", Matrix>>
    & Readonly<Partial<Record<"qBias" | "kBias" | "vBias" | "oBias" | "qNorm" | "kNorm", Matrix>>>;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Rows nearer than this many positions are seen; 0 = all. */
  readonly window: number;
  readonly ropeDim: number;
  readonly eps: number;
  readonly scale: number;
  /** 0 = none. */
  readonly softCap: number;
}

/** What lies around the layers. */
export interface Model {
  readonly embed: Matrix;
  readonly outputNorm: Matrix;
  /** null: tied to `embed`. */
  readonly output: Matrix | null;
  readonly eps: number;
}

/** The KV rows of one layer, with the step state that speaks of them. */
export interface Rows {
  /** [slots, kvHeads, capacity, headDim]. */
  readonly keys: Plain;
  readonly values: Plain;
  /** i32[slots, kvHeads, capacity]. */
  readonly rowPosition: Plain;
  /** i32[layers, slots]. */
  readonly rowEnd: Plain;
  readonly tailBegin: Plain;
  /** i32[slots]. */
  readonly active: Plain;
  /** i32[layers, slots, 8]: four 64-bit counters, low word first: sink, index, tail, estimates. */
  readonly attended: Plain;
  /** Which row of rowEnd, tailBegin and attended. */
  readonly layer: number;
}

/** `slot` of an op that serves a step: row i belongs to slot i. */
export const STEP = -1;

/** 0, 1, ... end - 1, or begin ... end - 1. */
export function range(end: number): number[];
export function range(begin: number, end: number): number[];
export function range(a: number, b?: number): number[] {
  const [begin, end] = b === undefined ? [0, a] : [a, b];
  return Array.from({ length: Math.max(0, end - begin) }, (_, i) => begin + i);
}

/** Adds to a 64-bit counter held as two i32, low word first. */
export function addToCounter(counter: Float64Array, count: number): void {
  const total = BigInt.asIntN(64, (BigInt(counter[1]) << 32n) + BigInt(counter[0] >>> 0) + BigInt(count));
  counter[0] = Number(BigInt.asIntN(32, total));
  counter[1] = Number(total >> 32n);
}
