/**
 * What a KV policy is. A policy decides, layer by layer, which KV rows a decode step reads: it allocates once per layer, is told when
 * a segment of rows is complete, and selects at each step. It never sees the device: `Kernels` can only enqueue.
 */
import type { Kernels } from "../kernels.ts";
import type { Tensor } from "../tensor.ts";
import type { DType } from "../types.ts";
import type { Rows } from "../kv/store.ts";

/** The layer reads every row at each step, under any policy. */
export const everyRow: unique symbol = Symbol("everyRow");

/** Rows [begin, begin + rows) of one slot, which will never be permuted again after this. */
export interface Segment {
  readonly slot: number;
  readonly begin: number;
  readonly rows: number;
  /** Rows of each segment of this slot that was built before, oldest first. */
  readonly earlier: readonly number[];
}

/** Gives out memory, once per layer. */
export interface Allocator {
  /** State: kept for the whole session, restored by rewind, saved with it. The first dimension is `slots`. */
  tensor(dtype: DType, shape: readonly number[]): Tensor;
  /** Room for intermediate results, shared between layers: what it holds does not outlive one `select` or `build`. */
  scratch(dtype: DType, shape: readonly number[]): Tensor;
}

/** What attention reads beside sink and tail. */
export interface Selection {
  /** Chosen rows, i32[slots, kvHeads or heads, budget], valid ones first, then -1; none: sink and tail only. */
  readonly index?: Tensor;
}

export interface Layer {
  /** Enqueues the choice of rows for this step. q: f32[slots, heads, headDim], rotated. */
  select(k: Kernels, q: Tensor): Selection;
  /** How many of the oldest unbuilt rows make a segment now (0: none yet). `ended`: the prompt has ended, rows come one by one. */
  due?(unbuiltRows: number, ended: boolean): number;
  /** Enqueues what a complete segment needs, between steps. Its rows may be permuted; afterwards they are no longer in the tail. */
  build?(k: Kernels, segment: Segment): void;
  /** Bytes that `select` reads in one step for one slot with `builtRows` rows in segments: for `stats`. */
  selectBytes?(builtRows: number): number;
}

export interface Policy {
  readonly name: string;
  /** First rows, always read and never part of a segment. */
  readonly sink: number;
  /** Rows that `index` holds per head: a number, or a fraction of the capacity as "1/16". */
  readonly budget?: number | string;
  layer(rows: Rows, memory: Allocator): Layer | typeof everyRow;
}

/** Rows that a budget means at a capacity: `1024`, `"1/16"`. A budget beyond the capacity is the capacity: every row. */
export function resolveBudget(budget: number | string, capacity: number): number {
  const fraction = typeof budget === "string" ? /^\s*(\d+)\s*\/\s*(\d+)\s*$/.exec(budget) : null;
  const rows = typeof budget === "number" ? budget : fraction ? Math.round((capacity * Number(fraction[1])) / Number(fraction[2])) : NaN;
  if (!Number.isInteger(rows) || rows < 0) {
    throw new RangeError(`Cannot use budget ${JSON.stringify(budget)}: want a whole number of rows from 0, or a fraction such as "1/16"`);
  }
  return Math.min(rows, capacity);
}
