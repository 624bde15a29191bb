import { knownOptions } from "../options.ts";
import type { Attention, Policy } from "./policy.ts";
import type { Kernels } from "../kernels.ts";

/** Options of `h2o`. */
export interface H2OOptions {
  /** Rows held per KV head, heavy hitters and recent ones: a number or a fraction of the capacity. */
  budget: number | string;
  /** Share of them that are the newest rows. */
  recent: number;
  /** Divide what a row has drawn by the number of queries that could see it, or old rows win by their age. */
  rates: boolean;
}

const defaults: H2OOptions = { budget: 1024, recent: 0.5, rates: false };

/**
 * H2O (arXiv 2306.14048): a row's score is all the attention that it has drawn, from every query of the prompt and of the text generated
 * since. The rows of highest score and the newest are held, per KV head over its group; each step drops one row for the one it adds.
 * Bytes per step and layer: budget * kvHeads * 2 row bytes, and their keys once more for the scores. Memory: the same, and while a prompt is
 * read the rows of one layer and the prompt's hidden states. Fails on what was looked at seldom and is needed late: it is gone.
 */
export const h2o = (options: Partial<H2OOptions> = {}): Policy => {
  knownOptions("use h2o", options, Object.keys(defaults));
  const { budget, recent, rates } = { ...defaults, ...options };
  if (!(recent >= 0 && recent <= 1)) throw new RangeError(`Cannot use a recent share of ${recent}: want a number from 0 to 1`);
  return {
    name: "h2o",
    options: { ...defaults, ...options },
    budget,
    sink: 0,
    block: "prompt",
    layer(rows, memory) {
      const { slots, kvHeads, capacity, handle } = rows;
      const newest = Math.max(1, Math.round(rows.budget * recent));
      const most = Math.max(rows.budget, newest);
      const mass = memory.tensor("f32", [slots, kvHeads, capacity]);
      const scores = rates ? memory.scratch("f32", [slots, kvHeads, capacity]) : mass;
      const keep = memory.scratch("i32", [slots, kvHeads, capacity]);
      const observe = (k: Kernels, { slot, count, q, lse, layer }: Attention) => {
        k.attentionMass(mass, q, lse, null, handle, layer, slot, count, 0);
        if (rates) k.massRates(scores, mass, handle, slot);
      };
      return {
        observe,
        select: () => ({}),
        attended(k, attention) {
          observe(k, attention);
          k.evict(handle, mass, scores, 0, newest, most);
        },
        rowsAfterStep: (held) => held > most ? held - 1 : held,
        giveBack(k, { slot, after, rows: held }) {
          if (after === "step" || held <= most) return;
          k.keep(keep, scores, slot, 0, held - newest, most - newest, held);
          return { keep, count: most, also: mass };
        },
      };
    },
  };
};
