/**
 * What a KV policy is, version 1; lib/policies/README.md is the manual. A policy decides, layer by layer, which KV rows a decode step
 * reads and which rows are held at all. It allocates once per layer and never sees the device: `Kernels` can only enqueue.
 */
import type { Kernels, LayerHandle } from "../kernels.ts";
import type { Tensor } from "../tensor.ts";
import type { DType } from "../types.ts";
import type { Rows } from "../kv/store.ts";

/** Version of this interface. It changes when a policy that was written for it would no longer do what it did. */
export const policyVersion = 1;

/** The layer reads every row at each step, under any policy. */
export const everyRow: unique symbol = Symbol("everyRow");

/** Rows [begin, begin + rows) of one slot, which will never be permuted again after this. */
export interface Segment {
  /** Which sequence of the batch. */
  readonly slot: number;
  /** The first row. */
  readonly begin: number;
  /** How many rows. */
  readonly rows: number;
  /** Rows of each segment of this slot that was built before, oldest first. */
  readonly earlier: readonly number[];
}

/** Gives out memory, once per layer. */
export interface Allocator {
  /** State: kept for the whole session, restored by rewind, saved with it. The first dimension is `slots`; an empty slot's is `fill` (0). */
  tensor(dtype: DType, shape: readonly number[], fill?: number): Tensor;
  /** State of each row, [slots, heads, capacity, width]: memory comes and goes with the rows. A row's is written once, when the row is. */
  perRow(dtype: DType, heads: number, width: number): Tensor;
  /** Room for intermediate results, shared by all layers: each layer finds there what the one before it left. Marks do not keep it. */
  scratch(dtype: DType, shape: readonly number[]): Tensor;
  /** Numbers that never change. */
  constant(values: Float32Array | Int32Array, shape: readonly number[]): Tensor;
  /** f32[capacity, 2, ropeDim / 2]: cosines and sines of every position. */
  rotations(): Tensor;
}

/** What `select` may look at beside the queries. */
export interface Step {
  /** f32[slots, 2, ropeDim / 2]: cosines and sines of the positions that are fed. */
  readonly rotations: Tensor;
}

/** Clusters that enter attention as one row each: key = centroid, value = mean, logit + bias (-inf: it does not enter). */
export interface Estimates {
  /** f32[slots, kvHeads, n, headDim]. */
  readonly centroids: Tensor;
  /** f32[slots, kvHeads, maxClusters, headDim]: mean values of the same members. */
  readonly means: Tensor;
  /** f32[slots, kvHeads, n]. */
  readonly bias: Tensor;
  /** i32[slots, kvHeads, budget]: rows, where each stands for one; for those who measure. */
  readonly rows?: Tensor;
}

/** What attention reads beside sink and tail. */
export interface Selection {
  /** Chosen rows, i32[slots, kvHeads or heads, budget], valid ones first, then -1; none: sink and tail only. */
  readonly index?: Tensor;
  /** Clusters that enter attention as one row each. */
  readonly estimates?: Estimates;
}

/** Attention that was just computed: of a chunk of a prompt, or of a step. */
export interface Attention {
  /** Slot of the chunk, or STEP: query i is slot i's. */
  readonly slot: number;
  /** Queries. A chunk's are of the newest `count` rows. */
  readonly count: number;
  /** Tokens of the prompt before this chunk, and after it; 0 in a step. */
  readonly from: number;
  /** Tokens of the prompt after the chunk. */
  readonly rest: number;
  /** Rows of the slot before the prompt began; 0 in a step. */
  readonly begin: number;
  /** Tokens of the whole prompt, whatever earlier layers dropped of it; 0 in a step. */
  readonly prompt: number;
  /** f32[>= count, heads, headDim], rotated. */
  readonly q: Tensor;
  /** f32[>= count, heads, headDim]: what attention gave. */
  readonly attended: Tensor;
  /** f32[>= count, heads]: log-sum-exp of its logits. */
  readonly lse: Tensor;
  /** f32[>= count, 2, ropeDim / 2]. */
  readonly rotations: Tensor;
  /** Weights of the layer. */
  readonly layer: LayerHandle;
}

/** When rows may be given back: at the end of a prompt, or after a step. */
export interface Place {
  /** Which sequence of the batch. */
  readonly slot: number;
  /** What has ended. */
  readonly after: "prompt" | "step";
  /** Rows held by the layer. */
  readonly rows: number;
  /** Rows held before the prompt began. */
  readonly begin: number;
  /** Tokens of the prompt. */
  readonly prompt: number;
  /** Tokens generated since the prompt ended. */
  readonly generated: number;
}

/** Rows to keep, as the op `keep` leaves them; all others are gone. */
export interface Kept {
  /** i32[slots, kvHeads or 1, n], ascending. */
  readonly keep: Tensor;
  /** How many rows are kept. */
  readonly count: number;
  /** f32[slots, kvHeads, capacity]: moves along with the rows. */
  readonly also?: Tensor;
  /**
   * "rows": the layer's own rows (unless said). "deeper": its rows stay, but deeper layers do not see the dropped tokens of this prompt (needs
   * `block: "prompt"`, one list for all heads, and a prompt that begins at row 0).
   */
  readonly of?: "rows" | "deeper";
}

/** What a policy does in one layer. */
export interface Layer {
  /** Enqueues the choice of rows for this step. q: f32[slots, heads, headDim], rotated. */
  select(k: Kernels, q: Tensor, step: Step): Selection;
  /** How many of the oldest unbuilt rows make a segment now (0: none yet). `ended`: the prompt has ended, rows come one by one. */
  due?(unbuiltRows: number, ended: boolean, earlier: readonly number[]): number;
  /** Enqueues what a complete segment needs, between steps. Its rows may be permuted; afterwards they are no longer in the tail. */
  build?(k: Kernels, segment: Segment): void;
  /** Enqueues something about the queries of a prompt, chunk after chunk. */
  observe?(k: Kernels, attention: Attention): void;
  /** Enqueues something about the queries of a step, after attention. */
  attended?(k: Kernels, attention: Attention): void;
  /** Before the previous layer begins a step: `queries(to)` enqueues the queries that this layer would make of that layer's input. */
  foresee?(k: Kernels, queries: (to: Tensor) => void): void;
  /** Enqueues which rows to keep, where some are given back now. */
  giveBack?(k: Kernels, place: Place): Kept | undefined;
  /** Rows held after a step that left `rows` of them, where the step itself dropped some (op `evict`). */
  rowsAfterStep?(rows: number): number;
  /** Clusters of a KV head after these segments were built: for `stats`. */
  clusters?(segments: readonly number[]): number;
  /** Bytes that `select` reads in one step for one slot with `builtRows` rows in segments: for `stats`. */
  selectBytes?(builtRows: number): number;
}

/** Which KV rows a step reads, and which are held. */
export interface Policy {
  /** What it is called in tables and errors. */
  readonly name: string;
  /** The `policyVersion` it was written for; the present one unless said. */
  readonly version?: number;
  /** What it was made with; a saved session comes back only to a policy of the same name and options. */
  readonly options?: Readonly<Record<string, unknown>>;
  /** First rows, always read and never part of a segment. */
  readonly sink: number;
  /** Rows that `index` holds per head: a number, or a fraction of the capacity as "1/16". */
  readonly budget?: number | string;
  /** "prompt": a whole prompt passes a layer before the next begins, at the cost of its hidden states; "chunk" unless said. */
  readonly block?: "chunk" | "prompt";
  /** Called once per layer, with the only allocator; `everyRow` exempts the layer. */
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

/** Zeros in a slot's part of f32 state, between steps. */
export function clearSlot(tensor: Tensor, slot: number): void {
  const elements = tensor.elements / tensor.shape[0];
  tensor.write(new Float32Array(elements), slot * elements);
}
