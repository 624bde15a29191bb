import { type Kernels, pool } from "../kernels.ts";
import { knownOptions } from "../options.ts";
import { type Attention, clearSlot, type Policy } from "./policy.ts";

/** Options of `snapKV`. */
export interface SnapKVOptions {
  /** Rows kept of a prompt, the observation window included: a number or a fraction of the capacity. */
  budget: number | string;
  /** Last queries of the prompt, whose attention says what is worth keeping; their own rows are kept. */
  window: number;
  /** Neighbouring rows whose scores are joined, so that kept rows come in runs: odd. */
  kernel: number;
  /** How scores of neighbouring rows are joined. */
  pooling: "mean" | "max";
  /** Choose for every query head, as the paper does. Rows cannot be given back then: heads of a group share them. */
  perHead: boolean;
}

const defaults: SnapKVOptions = { budget: 1024, window: 32, kernel: 5, pooling: "mean", perHead: false };

/**
 * SnapKV (arXiv 2404.14469): of a slot's first prompt, the rows to which its last queries attend most are kept, per KV head over its group,
 * and all others are given back as soon as a layer is done. Rows that come later all stay.
 * Bytes per step and layer: (budget + generated) * kvHeads * 2 row bytes. Memory: the same, and while a prompt is read the rows of one layer
 * and the prompt's hidden states. Fails on questions that the window does not hold: what it did not ask for is gone.
 */
export const snapKV = (options: Partial<SnapKVOptions> = {}): Policy => {
  knownOptions("use snapKV", options, Object.keys(defaults));
  const { budget, window, kernel, pooling, perHead } = { ...defaults, ...options };
  return {
    name: "snapKV",
    options: { ...defaults, ...options },
    budget,
    sink: 0,
    block: perHead ? "chunk" : "prompt",
    layer(rows, memory) {
      const { slots, kvHeads, heads, capacity } = rows;
      const ranks = perHead ? heads : kvHeads;
      const mass = perHead ? memory.tensor("f32", [slots, ranks, capacity]) : memory.scratch("f32", [slots, ranks, capacity]);
      const pooled = memory.scratch("f32", [slots, ranks, capacity]);
      const most = Math.max(0, rows.budget - window);
      const observe = (k: Kernels, { slot, count, from, rest, begin, q, lse, layer }: Attention) => {
        if (begin > 0) return;
        if (from === 0) clearSlot(mass, slot);
        const first = Math.max(0, count + rest - window);
        if (first < count) k.attentionMass(mass, q, lse, null, rows.handle, layer, slot, count, first);
      };
      if (perHead) {
        const index = memory.tensor("i32", [slots, heads, rows.budget], -1);
        return {
          observe,
          due: (unbuiltRows, ended, earlier) => ended && earlier.length === 0 ? Math.max(0, unbuiltRows - window) : 0,
          build(k, { slot, rows: end }) {
            k.poolScores(pooled, mass, slot, 0, end, kernel, pool[pooling]);
            k.keep(index, pooled, slot, 0, end, Math.min(most, end), end);
          },
          select: () => ({ index }),
        };
      }
      const keep = memory.scratch("i32", [slots, kvHeads, capacity]);
      return {
        observe,
        select: () => ({}),
        giveBack(k, { slot, after, rows: held, begin }) {
          if (after === "step" || begin > 0 || held <= Math.max(rows.budget, window)) return;
          k.poolScores(pooled, mass, slot, 0, held - window, kernel, pool[pooling]);
          k.keep(keep, pooled, slot, 0, held - window, most, held);
          return { keep, count: most + window };
        },
      };
    },
  };
};
