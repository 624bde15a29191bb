import type { LayerBases } from "../calibration.ts";
import { knownOptions } from "../options.ts";
import { everyRow, type Policy } from "./policy.ts";

/** Options of `infiniGen`. */
export interface InfiniGenOptions {
  /** For each layer the rotation of every KV head, f32[kvHeads, headDim, headDim]: `recallkv calibrate MODEL TEXT` makes it. */
  skew: LayerBases;
  /** Most rows read per head and step: a number or a fraction of the capacity. */
  budget: number | string;
  /** Share of the rotated channels that stands for all of them. */
  partial: number;
  /** A row is read if its estimated logit is at most so far below the best; heads read as many as they do on average. */
  alpha: number;
  /** Generated rows that are always read until as many have come. */
  every: number;
  /** Layers that read every row; the first always does. */
  exempt: readonly number[];
}

const defaults = { budget: 1024, partial: 0.3, alpha: 4, every: 64, exempt: [0] };

/**
 * InfiniGen (arXiv 2406.19707): queries and keys are rotated so that few channels carry their product, and the prompt says which. A layer
 * guesses its queries from the input of the layer before, scores all rows in these channels, and reads the best, per query head.
 * Bytes per step and layer: rows * kvHeads * 4 * partial * headDim for the guess, and up to (budget + every) * heads * 2 row bytes. Memory:
 * the rows, and the first term. Fails past a few hundred thousand rows (the guess reads them all), and where layers differ.
 */
export const infiniGen = (options: Partial<InfiniGenOptions> & Pick<InfiniGenOptions, "skew">): Policy => {
  knownOptions("use infiniGen", options, [...Object.keys(defaults), "skew"]);
  const { skew, budget, partial, alpha, every, exempt } = { ...defaults, ...options };
  return {
    name: "infiniGen",
    options: { ...defaults, ...options },
    budget,
    sink: 0,
    layer(rows, memory) {
      if (rows.layer === 0 || exempt.includes(rows.layer)) return everyRow;
      const { slots, kvHeads, heads, headDim, capacity, handle, active, scale } = rows;
      const channels = Math.max(1, Math.floor(partial * headDim));
      const all = memory.constant(skew.at(rows.layer, [kvHeads, headDim, headDim]), [1, kvHeads, headDim, headDim]);
      const everySlot = memory.constant(new Int32Array(slots).fill(1), [slots]);
      const weight = memory.tensor("f32", [slots, kvHeads, headDim]);
      const order = memory.scratch("i32", [slots, kvHeads, channels]);
      const basis = memory.tensor("f32", [slots, kvHeads, headDim, channels]);
      const latents = memory.perRow("f32", kvHeads, channels);
      const guess = memory.tensor("f32", [slots, heads, headDim]);
      const scores = memory.scratch("f32", [slots, heads, capacity]);
      const index = memory.scratch("i32", [slots, heads, rows.budget]);
      return {
        observe(k, { slot, count, begin, q }) {
          if (begin === 0) k.channelMass(weight, q, all, slot, count);
        },
        due: (unbuiltRows, ended, earlier) => ended && (earlier.length === 0 || unbuiltRows >= every) ? unbuiltRows : 0,
        build(k, { slot, begin, rows: count, earlier }) {
          if (earlier.length === 0) {
            k.topk(order, weight, everySlot);
            k.pickChannels(basis, all, order, slot);
          }
          k.projectRows(latents, handle, null, basis, slot, earlier.length === 0 ? begin + count : count);
        },
        foresee: (_k, queries) => queries(guess),
        select(k) {
          k.latentScores(scores, guess, latents, basis, null, handle, scale, 0);
          k.topk(index, scores, active);
          k.trimIndex(index, scores, active, alpha / scale);
          return { index };
        },
        selectBytes: (builtRows) => builtRows * kvHeads * channels * 4,
      };
    },
  };
};
