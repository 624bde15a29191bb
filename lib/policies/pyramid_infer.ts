import { pool } from "../kernels.ts";
import { knownOptions } from "../options.ts";
import { clearSlot, type Policy } from "./policy.ts";

/** Options of `pyramidInfer`. */
export interface PyramidInferOptions {
  /** Share of a prompt that counts as recent: all of it is kept, and its queries say what else is. */
  recent: number;
  /** How much more the newest of these queries weighs than the oldest. */
  newest: number;
  /** First rows, always kept. */
  sinks: number;
  /** Share of the context that the last layer keeps of what reaches it; the first keeps all, by a cosine in between. */
  ratio: number;
  /** A context of so many rows is not shortened any more. */
  least: number;
  /** Generated rows that are thinned out together, and the share that the last layer keeps of them. */
  every: number;
  /** Share of the generated rows that are kept. */
  generatedRatio: number;
}

const defaults: PyramidInferOptions = {
  recent: 0.2,
  newest: 1.2,
  sinks: 4,
  ratio: 0.9,
  least: 64,
  every: 16,
  generatedRatio: 0.1,
};

/**
 * PyramidInfer (arXiv 2405.12532): after each layer, of a slot's first prompt only those tokens go on to deeper layers to which the recent
 * queries attend most, summed over heads; the others' hidden states are dropped. Every so many generated rows are thinned out by the attention
 * that they have drawn since.
 * Bytes per step and layer: rows held * kvHeads * 2 row bytes. Memory: the same (what is kept compounds with depth), and the prompt's hidden
 * states while it is read. Fails on what the recent part of the prompt did not ask for: deeper layers have never seen it.
 */
export const pyramidInfer = (options: Partial<PyramidInferOptions> = {}): Policy => {
  knownOptions("use pyramidInfer", options, Object.keys(defaults));
  const { recent, newest, sinks, ratio, least, every, generatedRatio } = { ...defaults, ...options };
  return {
    name: "pyramidInfer",
    options: { ...defaults, ...options },
    sink: 0,
    block: "prompt",
    layer(rows, memory) {
      const { slots, kvHeads, capacity, handle } = rows;
      const depth = (Math.cos(Math.PI * rows.layer / rows.layers) + 1) / 2;
      const shareAt = (last: number) => (1 - last) * depth + last;
      const mass = memory.tensor("f32", [slots, kvHeads, capacity]);
      const together = memory.scratch("f32", [slots, 1, capacity]);
      const keep = memory.scratch("i32", [slots, 1, capacity]);
      const weights = memory.scratch("f32", [capacity]);
      const recentOf = (prompt: number) => 1 + Math.floor(recent * prompt);
      return {
        select: () => ({}),
        observe(k, { slot, count, from, rest, begin, prompt, q, lse, layer }) {
          if (begin > 0) return;
          if (from === 0) clearSlot(mass, slot);
          const asking = recentOf(prompt);
          const before = count + rest - asking; // queries of the chunk that come before the asking ones
          if (before >= count) return;
          const weight = (i: number) => i < before ? 0 : 1 + (newest - 1) * (i - before) / Math.max(1, asking - 1);
          weights.write(Float32Array.from({ length: count }, (_, i) => weight(i)));
          k.attentionMass(mass, q, lse, weights, handle, layer, slot, count, Math.max(0, before));
        },
        attended: (k, { slot, count, q, lse, layer }) => k.attentionMass(mass, q, lse, null, handle, layer, slot, count, 0),
        giveBack(k, { slot, after, rows: held, begin, prompt, generated }) {
          if (after === "step") {
            const stay = Math.max(1, Math.floor(every * 0.9 * shareAt(generatedRatio)));
            if (generated === 0 || generated % every !== 0 || stay >= every) return;
            k.poolScores(together, mass, slot, 0, held, 1, pool.mean);
            k.keep(keep, together, slot, held - every, held, stay, held);
            return { keep, count: held - every + stay, also: mass };
          }
          const context = held - recentOf(prompt);
          const stay = Math.floor(context * shareAt(ratio));
          if (begin > 0 || stay <= least || stay >= context) return;
          k.poolScores(together, mass, slot, 0, held, 1, pool.mean);
          k.keep(keep, together, slot, sinks, context, stay - sinks, held);
          return { keep, count: held - context + stay, of: "deeper" };
        },
      };
    },
  };
};
