/** The KV rows of a session: one store per layer, and the step state they share. */
import type { Arena } from "../device.ts";
import type { Kernels, RowsHandle } from "../kernels.ts";
import { rowBytes, type Tensor } from "../tensor.ts";
import type { KvDType } from "../types.ts";

/** What changes from step to step, on the device; the session owns it. */
export interface StepState {
  /** i32[slots]: place in the text of the token to feed. */
  readonly position: Tensor;
  /** i32[slots]: the token to feed. */
  readonly token: Tensor;
  /** f32[slots]: log-probability of that token. */
  readonly logprob: Tensor;
  /** i32[slots]: 1 if the slot takes part. */
  readonly active: Tensor;
  /** i32[layers, slots]: rows held by a layer. */
  readonly rowEnd: Tensor;
  /** i32[layers, slots]: where a layer's tail begins. */
  readonly tailBegin: Tensor;
  /** i32[layers, slots, 8]: four 64-bit counters of rows read: sink, index, tail, estimates. */
  readonly attended: Tensor;
}

export function stepState(arena: Arena, layers: number, slots: number): StepState {
  return {
    position: arena.tensor("i32", [slots]),
    token: arena.tensor("i32", [slots]),
    logprob: arena.tensor("f32", [slots]),
    active: arena.tensor("i32", [slots]),
    rowEnd: arena.tensor("i32", [layers, slots]),
    tailBegin: arena.tensor("i32", [layers, slots]),
    attended: arena.tensor("i32", [layers, slots, 8]),
  };
}

export interface RowsShape {
  /** Layers of the model. */
  readonly layers: number;
  readonly slots: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly capacity: number;
  readonly dtype: KvDType;
  /** Softmax scale of the layer. */
  readonly scale: number;
  /** Rows of a policy's index, per head. */
  readonly budget: number;
}

/** The KV rows of one layer. The order of rows belongs to one KV head; `position` says where in the text each was. */
export class Rows {
  /** [slots, kvHeads, capacity, headDim]. */
  readonly keys: Tensor;
  /** [slots, kvHeads, capacity, headDim]. */
  readonly values: Tensor;
  /** i32[slots, kvHeads, capacity]. */
  readonly position: Tensor;
  /** i32[slots]: 1 if the slot takes part in the step. */
  readonly active: Tensor;
  /** i32[layers, slots]: where tails begin. */
  readonly tailBegin: Tensor;
  /** What ops take. */
  readonly handle: RowsHandle;
  /** Layers of the model; `layer` is one of them. */
  readonly layers: number;
  /** Sequences served by one step. */
  readonly slots: number;
  /** Query heads. */
  readonly heads: number;
  /** Key and value heads. */
  readonly kvHeads: number;
  /** Width of a head. */
  readonly headDim: number;
  /** Most rows of a slot. */
  readonly capacity: number;
  /** Multiplies q . k before the softmax. */
  readonly scale: number;
  /** Rows of the policy's index, per head. */
  readonly budget: number;
  readonly #committed: number[];
  readonly #perRow: Tensor[] = [];

  /** Made by a session. */
  constructor(arena: Arena, readonly layer: number, shape: RowsShape, state: StepState) {
    const { slots, heads, kvHeads, headDim, capacity, dtype } = shape;
    this.keys = arena.tensor(dtype, [slots, kvHeads, capacity, headDim]);
    this.values = arena.tensor(dtype, [slots, kvHeads, capacity, headDim]);
    this.position = arena.tensor("i32", [slots, kvHeads, capacity]);
    this.active = state.active;
    this.tailBegin = state.tailBegin;
    this.handle = arena.rows([this.keys, this.values, this.position, state.rowEnd, state.tailBegin, state.active, state.attended], layer);
    this.#committed = new Array<number>(slots).fill(0);
    this.position.commit(kvHeads);
    this.layers = shape.layers;
    this.slots = slots;
    this.heads = heads;
    this.kvHeads = kvHeads;
    this.headDim = headDim;
    this.capacity = capacity;
    this.scale = shape.scale;
    this.budget = shape.budget;
  }

  /** Bytes of one row: key and value of one KV head. */
  get bytesPerRow(): number {
    return 2 * this.keys.rowBytes;
  }

  /** Commits memory for `rows` rows of a slot, in steps of 512 so that it is asked for rarely. Throws RecallError `RKV_MEMORY`. */
  commit(slot: number, rows: number): void {
    if (rows <= this.#committed[slot]) return;
    const wanted = Math.min(this.capacity, Math.ceil(rows / 512) * 512);
    const tensors = [this.keys, this.values, ...this.#perRow];
    try {
      for (const tensor of tensors) tensor.commit(wanted, slot);
    } catch (error) {
      for (const tensor of tensors) tensor.release(slot, this.#committed[slot]);
      throw error;
    }
    this.#committed[slot] = wanted;
  }

  /** Bytes that `commit` would ask for. */
  wanting(slot: number, rows: number): number {
    const more = Math.max(0, Math.min(this.capacity, Math.ceil(rows / 512) * 512) - this.#committed[slot]);
    return more * [this.keys, this.values, ...this.#perRow].reduce((sum, { shape, rowBytes }) => sum + shape[1] * rowBytes, 0);
  }

  /** Gives back the memory of rows from `row` on. */
  release(slot: number, row: number): void {
    const wanted = Math.ceil(row / 512) * 512;
    if (wanted >= this.#committed[slot]) return;
    for (const tensor of [this.keys, this.values, ...this.#perRow]) tensor.release(slot, wanted);
    this.#committed[slot] = wanted;
  }

  /** State of each row beside key and value: its memory comes and goes with theirs. */
  get perRow(): readonly Tensor[] {
    return this.#perRow;
  }

  /** `tensor`: [slots, heads, capacity, width]. */
  attach(tensor: Tensor): void {
    this.#perRow.push(tensor);
  }
}

/** Enqueues a copy of the first `count` rows of a slot that hold its text in order. */
export function copyRows(k: Kernels, to: Rows, slot: number, from: Rows, of: number, count: number): void {
  const places = Int32Array.from({ length: count }, (_, i) => i);
  for (let h = 0; h < to.kvHeads; h++) {
    const [toPlane, fromPlane] = [slot * to.kvHeads + h, of * from.kvHeads + h];
    k.copy(to.keys, toPlane * to.capacity, from.keys, fromPlane * from.capacity, count);
    k.copy(to.values, toPlane * to.capacity, from.values, fromPlane * from.capacity, count);
    to.position.write(places, toPlane * to.capacity);
  }
}

/** Address space that the rows of one layer take. */
export function reservedBytes({ slots, kvHeads, headDim, capacity, dtype }: RowsShape): number {
  return slots * kvHeads * capacity * (2 * rowBytes(dtype, headDim) + 4);
}
