import { pool } from "../kernels.ts";
import { knownOptions } from "../options.ts";
import { clearSlot, type Policy } from "./policy.ts";

/** Options of `chunkKV`. */
export interface ChunkKVOptions {
  /** Rows kept of a prompt, the observation window included: a number or a fraction of the capacity. */
  budget: number | string;
  /** Neighbouring rows that are kept or given back together. */
  chunk: number;
  /** Last queries of the prompt, whose attention says what is worth keeping; their own rows are kept. */
  window: number;
  /** Layers that share one choice, made by the first of them. */
  reuse: number;
}

const defaults: ChunkKVOptions = { budget: 1024, chunk: 10, window: 32, reuse: 2 };

/**
 * ChunkKV (arXiv 2502.00299): of a slot's first prompt, whole chunks of rows are kept, those to which its last queries attend most, summed over
 * heads; the next layers keep the same rows. All others are given back as soon as a layer is done; rows that come later all stay.
 * Bytes per step and layer: (budget + generated) * kvHeads * 2 row bytes. Memory: the same, and while a prompt is read the rows of one layer
 * and the prompt's hidden states. Fails on questions that the window does not hold, and where one row of a chunk matters.
 */
export const chunkKV = (options: Partial<ChunkKVOptions> = {}): Policy => {
  knownOptions("use chunkKV", options, Object.keys(defaults));
  const { budget, chunk, window, reuse } = { ...defaults, ...options };
  return {
    name: "chunkKV",
    options: { ...defaults, ...options },
    budget,
    sink: 0,
    block: "prompt",
    layer(rows, memory) {
      const { slots, kvHeads, capacity } = rows;
      const mass = memory.scratch("f32", [slots, kvHeads, capacity]);
      const pooled = memory.scratch("f32", [slots, 1, capacity]);
      const keep = memory.scratch("i32", [slots, 1, capacity]); // the next layers find it there
      const chooses = rows.layer % reuse === 0;
      const most = Math.max(0, rows.budget - window);
      return {
        select: () => ({}),
        observe(k, { slot, count, from, rest, begin, q, lse, layer }) {
          if (!chooses || begin > 0) return;
          if (from === 0) clearSlot(mass, slot);
          const first = Math.max(0, count + rest - window);
          if (first < count) k.attentionMass(mass, q, lse, null, rows.handle, layer, slot, count, first);
        },
        giveBack(k, { slot, after, rows: held, begin }) {
          if (after === "step" || begin > 0 || held <= Math.max(rows.budget, window)) return;
          if (chooses) {
            k.poolScores(pooled, mass, slot, 0, held - window, chunk, pool.chunk);
            k.keep(keep, pooled, slot, 0, held - window, most, held);
          }
          return { keep, count: most + window };
        },
      };
    },
  };
};
