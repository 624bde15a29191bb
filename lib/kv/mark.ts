/**
 * A place one can come back to. A mark copies what is small: policy state, the step's logits and token, and the rows that a later build
 * would permute. Built segments never move, so they need no copy.
 */
import type { Arena, Device } from "../device.ts";
import type { Kernels } from "../kernels.ts";
import type { SessionLayer } from "../decoder.ts";
import { everyRow } from "../policies/policy.ts";
import type { Tensor } from "../tensor.ts";
import type { Rows } from "./store.ts";
import { cloneSlot, type SlotState, tailBegin } from "./slot.ts";

/** A run of rows of a tensor: rows of its last dimension, or elements of a vector. */
export interface RowRun {
  readonly tensor: Tensor;
  readonly row: number;
  readonly rows: number;
}

interface Kept extends RowRun {
  readonly copy: Tensor;
}

/** A place to come back to, made by `Session.mark`. */
export class Mark {
  readonly #arena: Arena;
  readonly #kept: Kept[] = [];
  readonly #state: SlotState;

  /**
   * What the host knew at this place.
   * @internal
   */
  get state(): SlotState {
    return this.#state;
  }

  /** Enqueues the copies. `state`: tensors whose first dimension is `slots`. */
  constructor(
    device: Device,
    k: Kernels,
    readonly slot: number,
    held: SlotState,
    state: readonly Tensor[],
    layers: readonly SessionLayer[],
  ) {
    this.#state = cloneSlot(held);
    const runs = [...state.map((tensor) => slotRun(tensor, slot)), ...layers.flatMap((layer, l) => unbuiltRuns(layer, slot, held, l))];
    const bytes = runs.reduce((sum, { tensor, rows }) => sum + rows * bytesOfRow(tensor) + 4096, 1 << 20);
    using building = new DisposableStack(); // gives the arena back when the copies do not fit
    this.#arena = building.use(device.arena(bytes));
    for (const { tensor, row, rows } of runs) {
      const shape = tensor.shape.length === 1 ? [rows] : [rows, tensor.shape.at(-1)!];
      const copy = this.#arena.tensor(tensor.dtype, shape);
      copy.commit(rows);
      k.copy(copy, 0, tensor, row, rows);
      this.#kept.push({ tensor, row, copy, rows });
    }
    building.move();
  }

  /** Tokens held at this place. */
  get length(): number {
    return this.#state.tokens.length;
  }

  /**
   * Enqueues the way back; returns what the host knew here.
   * @internal
   */
  restore(k: Kernels): SlotState {
    for (const { tensor, row, copy, rows } of this.#kept) k.copy(tensor, row, copy, 0, rows);
    return cloneSlot(this.#state);
  }

  /** Gives everything back. Nothing of it may be used afterwards. */
  [Symbol.dispose](): void {
    this.#arena[Symbol.dispose]();
  }
}

function bytesOfRow(tensor: Tensor): number {
  return tensor.shape.length === 1 ? 4 : tensor.rowBytes;
}

/** All rows of one slot of a tensor [slots, ...]. */
function slotRun(tensor: Tensor, slot: number): RowRun {
  const width = tensor.shape.length === 1 ? 1 : tensor.shape.at(-1)!;
  const rows = width === 0 ? 0 : tensor.elements / tensor.shape[0] / width;
  return { tensor, row: slot * rows, rows };
}

/** Rows that may still move: those of the tail where a policy builds segments, all of them where it gives rows back. */
function unbuiltRuns(layer: SessionLayer, slot: number, held: SlotState, l: number): RowRun[] {
  const { rows, policy, sink } = layer;
  if (policy === everyRow || (!policy.build && !policy.giveBack)) return [];
  return rowRuns(rows, slot, policy.giveBack ? 0 : tailBegin(held.layers[l], sink), held.layers[l].end);
}

/** Rows [begin, end) of one slot of a layer, with their positions and the state that belongs to them. */
export function rowRuns(rows: Rows, slot: number, begin: number, end: number): RowRun[] {
  const count = end - begin;
  if (count <= 0) return [];
  const runs: RowRun[] = [{ tensor: rows.position, row: slot * rows.kvHeads, rows: rows.kvHeads }];
  for (const tensor of [rows.keys, rows.values, ...rows.perRow]) {
    const heads = tensor.shape[1];
    for (let h = 0; h < heads; h++) runs.push({ tensor, row: (slot * heads + h) * rows.capacity + begin, rows: count });
  }
  return runs;
}
