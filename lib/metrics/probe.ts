/** Watches a policy at work: what each layer asked, which rows it read, what came out. Any policy, through the public interface alone. */
import { everyRow, type Layer, type Policy } from "../policies/policy.ts";
import type { Rows } from "../kv/store.ts";
import type { Session } from "../session.ts";
import type { Tensor } from "../tensor.ts";

interface Watched {
  readonly rows: Rows;
  readonly sink: number;
  /** None: the layer reads every row under any policy. */
  readonly taps: { readonly q: Tensor; readonly attended: Tensor; readonly index: () => Tensor | undefined } | null;
}

/** One layer of one slot, as its last step left it. */
export interface LayerView {
  /** Number of the layer. */
  readonly layer: number;
  /** Query heads. */
  readonly heads: number;
  /** Key and value heads. */
  readonly kvHeads: number;
  /** Width of a head. */
  readonly headDim: number;
  /** Multiplies q . k before the softmax. */
  readonly scale: number;
  /** Rows held. */
  readonly held: number;
  /** f32[heads, headDim]; none where the layer reads every row under any policy. */
  readonly q?: Float32Array;
  /** f32[heads, headDim]. */
  readonly attended?: Float32Array;
  /** f32[held, headDim] of each KV head. */
  readonly keys: readonly Float32Array[];
  /** f32[held, headDim] of each KV head. */
  readonly values: readonly Float32Array[];
  /** Place in the text of each held row, of each KV head. */
  readonly position: readonly Int32Array[];
  /** Rows that each query head read. */
  readonly read: readonly (readonly number[])[];
}

/** Watches what a policy reads. */
export class Probe {
  /** Give this one to the session. */
  readonly policy: Policy;
  readonly #watched: Watched[] = [];

  /** Watches `policy`. */
  constructor(policy: Policy) {
    this.policy = { ...policy, layer: (rows, memory) => this.#watch(policy, rows, memory) };
  }

  #watch(policy: Policy, rows: Rows, memory: Parameters<Policy["layer"]>[1]): Layer | typeof everyRow {
    const inner = policy.layer(rows, memory);
    if (inner === everyRow) {
      this.#watched.push({ rows, sink: 0, taps: null });
      return inner;
    }
    const { slots, heads, headDim } = rows;
    const [q, attended] = [memory.tensor("f32", [slots, heads, headDim]), memory.tensor("f32", [slots, heads, headDim])];
    const indices = new Map<number, Tensor>(); // an index may have kvHeads or heads rows
    for (const ranks of new Set(rows.budget > 0 ? [rows.kvHeads, heads] : [])) {
      indices.set(ranks, memory.tensor("i32", [slots, ranks, rows.budget], -1));
    }
    let chosen: Tensor | undefined;
    this.#watched.push({ rows, sink: policy.sink, taps: { q, attended, index: () => chosen } });
    return {
      ...inner,
      select(k, query, step) {
        const selection = inner.select(k, query, step);
        const index = selection.index ?? selection.estimates?.rows;
        chosen = index && indices.get(index.shape[1]);
        k.copy(q, 0, query, 0, slots * heads);
        if (index && chosen) k.copy(chosen, 0, index, 0, slots * index.shape[1]);
        return selection;
      },
      attended(k, attention) {
        inner.attended?.(k, attention);
        k.copy(attended, 0, attention.attended, 0, slots * heads);
      },
    };
  }

  /** Reads what the last step of a slot left, layer after layer. The session's rows must be f32. */
  async *layers(session: Session, slot = 0): AsyncGenerator<LayerView, void, undefined> {
    if (session.kvDtype !== "f32") throw new RangeError(`Cannot look into rows of ${session.kvDtype}: want a session with kvDtype "f32"`);
    for (const { rows, sink, taps } of this.#watched) {
      const { layer, heads, kvHeads, headDim, capacity, slots, scale } = rows;
      const held = session.rows(slot)[layer];
      const part = async (tensor: Tensor, width: number) => {
        const planes = [];
        for (let h = 0; h < kvHeads; h++) planes.push(await tensor.read((slot * kvHeads + h) * capacity * width, held * width));
        return planes;
      };
      const keys = await part(rows.keys, headDim) as Float32Array[];
      const values = await part(rows.values, headDim) as Float32Array[];
      const position = await part(rows.position, 1) as Int32Array[];
      const view = { layer, heads, kvHeads, headDim, scale, held, keys, values, position };
      if (!taps) {
        yield { ...view, read: [] };
        continue;
      }
      const own = async (tensor: Tensor) => await tensor.read(slot * heads * headDim, heads * headDim) as Float32Array;
      const [begin] = await rows.tailBegin.read(layer * slots + slot, 1) as Int32Array;
      const index = taps.index();
      const chosen = index && await index.read(slot * index.shape[1] * rows.budget, index.shape[1] * rows.budget) as Int32Array;
      const read = Array.from({ length: heads }, (_, g) => {
        const rank = index ? Math.floor(g * index.shape[1] / heads) : 0;
        const recalled = chosen ? [...chosen.subarray(rank * rows.budget, (rank + 1) * rows.budget)].filter((row) => row >= 0) : [];
        return [...span(0, Math.min(sink, begin)), ...recalled, ...span(begin, held)];
      });
      yield { ...view, q: await own(taps.q), attended: await own(taps.attended), read };
    }
  }
}

function span(begin: number, end: number): number[] {
  return Array.from({ length: Math.max(0, end - begin) }, (_, i) => begin + i);
}
