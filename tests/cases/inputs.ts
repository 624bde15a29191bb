/** Makers of inputs. Whatever an op has no business reading is NaN (or a row number far outside), so that reading it shows. */
import { type DType, type Layer, type Plain, range, type Rows } from "../reference/plain.ts";
import { decode, encode } from "./codec.ts";
import type { Random } from "./random.ts";
import { matrix, vector, type WeightType } from "./weights.ts";

export type KvDType = "f32" | "f16" | "bf16" | "q8";

/** What outputs hold before: a number that no op computes. */
export const UNWRITTEN = -77777.125;
/** An integer where none may be read: as a row, a token or a cluster it lies outside everything. */
export const NOWHERE = 1 << 30;

/** A tensor whose element at a place is what `value` says, rounded to the dtype. */
export function tensor(dtype: DType, shape: readonly number[], value: (...place: number[]) => number): Plain {
  const place = shape.map(() => 0);
  const data = new Float64Array(shape.reduce((product, extent) => product * extent, 1));
  for (let i = 0; i < data.length; i++) {
    data[i] = value(...place);
    for (let d = shape.length - 1; d >= 0 && ++place[d] === shape[d]; d--) place[d] = 0;
  }
  const made = { dtype, shape, data };
  data.set(decode(dtype, encode(made), shape[shape.length - 1]));
  return made;
}

/** An output, before. */
export function unwritten(dtype: DType, shape: readonly number[]): Plain {
  return tensor(dtype, shape, () => dtype === "i32" ? Math.trunc(UNWRITTEN) : UNWRITTEN);
}

/** Scratch of exactly as many floats as the header asks for. */
export function work(floats: number): Plain {
  return tensor("f32", [Math.max(1, floats)], () => NaN);
}

export function activeSlots(slots: number, inactive: readonly number[] = []): Plain {
  return tensor("i32", [slots], (s) => inactive.includes(s) ? 0 : 1);
}

export interface RowsOptions {
  /** Rows held, per slot. */
  readonly lengths: readonly number[];
  /** Slots that take no part: all they hold is NaN. */
  readonly inactive?: readonly number[];
  readonly kvHeads: number;
  readonly headDim: number;
  readonly capacity: number;
  readonly dtype?: KvDType;
  /** Rows of each slot's tail; all that follow the sink unless said. */
  readonly tail?: number;
  /** Rows before the tail lie in another order than the text, another one for each head. */
  readonly shuffled?: boolean;
}

/** KV rows of the second of two layers; past each slot's length lies NaN. */
export function kvRows(options: RowsOptions, random: Random): Rows {
  const { lengths, inactive = [], kvHeads, headDim, capacity, dtype = "f32", tail = Infinity, shuffled = false } = options;
  const slots = lengths.length;
  const planes = [slots, kvHeads, capacity, headDim];
  const heldRows = lengths.map((length, s) => inactive.includes(s) ? 0 : length);
  const held = (s: number, row: number) => row < heldRows[s];
  const tailBegin = (s: number) => Math.max(0, lengths[s] - tail);
  const places = lengths.map((_, s) => range(kvHeads).map(() => shuffled ? random.shuffled(tailBegin(s)) : []));
  return {
    keys: tensor(dtype, planes, (s, _h, row) => held(s, row) ? random.normal() : NaN),
    values: tensor(dtype, planes, (s, _h, row) => held(s, row) ? random.normal() : NaN),
    rowPosition: tensor("i32", [slots, kvHeads, capacity], (s, h, row) => held(s, row) ? places[s][h][row] ?? row : NOWHERE),
    rowEnd: tensor("i32", [2, slots], (layer, s) => layer === 1 ? lengths[s] : NOWHERE),
    tailBegin: tensor("i32", [2, slots], (layer, s) => layer === 1 ? tailBegin(s) : NOWHERE),
    active: activeSlots(slots, inactive),
    attended: tensor("i32", [2, slots, 8], (_layer, s, word) => word % 2 === 0 ? -1 - s : 7), // the next row read carries into the high word
    layer: 1,
  };
}

export interface LayerOptions {
  readonly hidden: number;
  readonly kvHeads: number;
  /** Query heads per KV head. */
  readonly group: number;
  readonly headDim: number;
  readonly intermediate?: number;
  readonly weights?: WeightType;
  readonly ropeDim?: number;
  readonly window?: number;
  readonly softCap?: number;
  readonly biases?: boolean;
  readonly norms?: boolean;
  /** q and k lie in the file with adjacent RoPE pairs. */
  readonly rotated?: boolean;
}

export function layer(options: LayerOptions, random: Random): Layer {
  const { hidden, kvHeads, group, headDim, intermediate = 16, weights: type = "f32", biases = false, norms = false, rotated = false } =
    options;
  const heads = kvHeads * group;
  const w = (rows: number, cols: number, rotatedHeads = 0) => matrix(type, rows, cols, random, rotatedHeads);
  const bias = (length: number) => vector(length, random, 0);
  const norm = (length: number) => vector(length, random, 1);
  return {
    weights: {
      attnNorm: norm(hidden),
      q: w(heads * headDim, hidden, rotated ? heads : 0),
      k: w(kvHeads * headDim, hidden, rotated ? kvHeads : 0),
      v: w(kvHeads * headDim, hidden),
      o: w(hidden, heads * headDim),
      ffnNorm: norm(hidden),
      gate: w(intermediate, hidden),
      up: w(intermediate, hidden),
      down: w(hidden, intermediate),
      ...(biases && { qBias: bias(heads * headDim), kBias: bias(kvHeads * headDim), vBias: bias(kvHeads * headDim), oBias: bias(hidden) }),
      ...(norms && { qNorm: norm(headDim), kNorm: norm(headDim) }),
    },
    heads,
    kvHeads,
    headDim,
    window: options.window ?? 0,
    ropeDim: options.ropeDim ?? headDim,
    eps: Math.fround(1e-5),
    scale: Math.fround(1 / Math.sqrt(headDim)),
    softCap: options.softCap ?? 0,
  };
}
