import type { Policy } from "./policy.ts";

export interface SlidingWindowOptions {
  /** First rows, always read (the paper's 4 attention sinks). */
  sink: number;
  /** Last rows that are read. */
  window: number;
}

/**
 * StreamingLLM (arXiv 2309.17453): attends the first few rows, on which softmax parks its weight, and the last `window` rows. Positions
 * stay what they were in the text: nothing is renumbered.
 * Bytes per step and layer: (sink + window) * kvHeads * 2 row bytes. Memory: the rows. Fails on whatever lies between the two.
 */
export const slidingWindow = (options: Partial<SlidingWindowOptions> = {}): Policy => {
  const { sink, window } = { sink: 4, window: 1024, ...options };
  if (!Number.isInteger(window) || window < 1) throw new RangeError(`Cannot use a window of ${window} rows: want a whole number from 1`);
  return {
    name: "slidingWindow",
    sink,
    layer: (rows) => ({
      select(k) {
        k.setTail(rows.handle, sink, window);
        return {};
      },
    }),
  };
};
