import { knownOptions } from "../options.ts";
import { everyRow, type Policy } from "./policy.ts";

/** Options of `quest`. */
export interface QuestOptions {
  /** Rows read per head and step, beside sink and tail: a number or a fraction of the capacity. */
  budget: number | string;
  /** Rows per page. */
  page: number;
  /** First rows, always read: a multiple of `page`. */
  sink: number;
  /** Choose for every query head, as the paper does; a KV head's group chooses together if false. */
  perHead: boolean;
  /** Layers that read every row. */
  exempt: readonly number[];
}

const defaults: QuestOptions = { budget: 1024, page: 16, sink: 0, perHead: true, exempt: [0, 1] };

/**
 * Quest (arXiv 2406.10774): rows lie in pages, in order; each page keeps the least and largest key of every channel. A step ranks pages by
 * the best logit that these bounds allow, and reads the best pages; the open page, with the newest row, is always read.
 * Bytes per step and layer: (budget + page) * kvHeads * 2 row bytes, shared by the heads of a group only where they choose alike, and
 * rows / page * kvHeads * 2 row bytes of bounds. Memory: the rows, and 1 / page of them. Fails where bounds are loose: wide heads, or keys
 * of one page that differ.
 */
export const quest = (options: Partial<QuestOptions> = {}): Policy => {
  knownOptions("use quest", options, Object.keys(defaults));
  const { budget, page, sink, perHead, exempt } = { ...defaults, ...options };
  if (!Number.isInteger(page) || page < 1) throw new RangeError(`Cannot use pages of ${page} rows: want a whole number from 1`);
  if (sink % page !== 0) throw new RangeError(`Cannot use a sink of ${sink} rows: want a multiple of the page, ${page}`);
  return {
    name: "quest",
    options: { ...defaults, ...options },
    budget,
    sink,
    layer(rows, memory) {
      if (exempt.includes(rows.layer)) return everyRow;
      const { slots, kvHeads, heads, headDim, capacity, active, scale } = rows;
      const [pages, ranks] = [Math.ceil(capacity / page), perHead ? heads : kvHeads];
      const dtype = rows.keys.dtype === "q8" ? "f32" : rows.keys.dtype;
      const bounds = memory.tensor(dtype, [slots, kvHeads, pages, 2, headDim]);
      const begins = Int32Array.from({ length: slots * kvHeads * (pages + 1) }, (_, i) => i % (pages + 1) * page);
      const offsets = memory.constant(begins, [slots, kvHeads, pages + 1]);
      const scores = memory.scratch("f32", [slots, ranks, pages]);
      const ranked = memory.scratch("i32", [slots, ranks, Math.min(pages, Math.ceil(rows.budget / page))]);
      const index = memory.scratch("i32", [slots, ranks, rows.budget]);
      return {
        due: (unbuiltRows) => Math.floor(Math.max(0, unbuiltRows - 1) / page) * page,
        build: (k, { slot, begin, rows: count }) => k.pageBounds(bounds, rows.handle, page, slot, begin, count),
        select(k, q) {
          k.pageScores(scores, q, bounds, rows.handle, scale, page, sink);
          k.topk(ranked, scores, active);
          k.fillBudget(index, ranked, offsets, active);
          return { index };
        },
        selectBytes: (builtRows) => Math.floor(builtRows / page) * kvHeads * 2 * headDim * (dtype === "f32" ? 4 : 2),
      };
    },
  };
};
