import { knownOptions } from "../options.ts";
import type { Policy } from "./policy.ts";

/** Options of `slidingWindow`. */
export interface SlidingWindowOptions {
  /** First rows, always read (the paper's 4 attention sinks). */
  sink: number;
  /** Last rows that are read. */
  window: number;
}

/** Rows beyond the window that may be held until they are given back together. */
const SLACK = 512;

/**
 * StreamingLLM (arXiv 2309.17453): attends the first few rows, on which softmax parks its weight, and the last `window` rows; all others
 * are given back when a prompt has ended. Positions stay what they were in the text: nothing is renumbered.
 * Bytes per step and layer: (sink + window) * kvHeads * 2 row bytes. Memory: as many rows, and up to 512 more. Fails on whatever lies
 * between the two.
 */
export const slidingWindow = (options: Partial<SlidingWindowOptions> = {}): Policy => {
  knownOptions("use slidingWindow", options, ["sink", "window"]);
  const { sink, window } = { sink: 4, window: 1024, ...options };
  if (!Number.isInteger(window) || window < 1) throw new RangeError(`Cannot use a window of ${window} rows: want a whole number from 1`);
  return {
    name: "slidingWindow",
    options: { sink, window },
    sink,
    layer(rows, memory) {
      const keep = memory.scratch("i32", [rows.slots, 1, rows.capacity]);
      const scores = memory.scratch("f32", [rows.slots, 1, rows.capacity]); // none is looked at: no row between is kept
      return {
        select(k) {
          k.setTail(rows.handle, sink, window);
          return {};
        },
        giveBack(k, { slot, rows: held, after }) {
          if (held <= sink + window + (after === "prompt" ? 0 : SLACK)) return;
          k.keep(keep, scores, slot, sink, held - window, 0, held);
          return { keep, count: sink + window };
        },
      };
    },
  };
};
