import type { LayerBases } from "../calibration.ts";
import { STEP } from "../kernels.ts";
import { knownOptions } from "../options.ts";
import { everyRow, type Policy } from "./policy.ts";

/** Options of `sals`. */
export interface SALSOptions {
  /** For each layer the leading directions of its keys before rotation, all heads side by side, f32[kvHeads * headDim, n]: `recallkv
   * calibrate MODEL TEXT` makes them. */
  projection: LayerBases;
  /** Rows read per step beside sink and tail: a number or a fraction of the capacity. */
  budget: number | string;
  /** Channels of a latent key, as a share of kvHeads * headDim. */
  rank: number;
  /** Share of these channels that rows are ranked by. */
  ranked: number;
  /** First rows, always read as they are. */
  sink: number;
  /** Rows that are read as they are until as many have come. */
  every: number;
  /** Layers that read every row; -1 is the last. */
  exempt: readonly number[];
}

const defaults = { budget: 1024, rank: 0.25, ranked: 0.5, sink: 16, every: 64, exempt: [0, 1, -1] };

/**
 * SALS (arXiv 2510.24273): before rotation, the keys of all heads together have low rank. Rows are ranked in the leading channels, without
 * rotation and for all heads together; the keys of the best are brought back from their latents and rotated to where they stood.
 * Bytes per step and layer: rows * 4 * ranked * r for the ranking (r = rank * kvHeads * headDim), budget * 4 r for the keys, budget * kvHeads
 * row bytes for the values. Memory: the rows (a later prompt reads them all) and 4 r bytes each. Fails where heads want different rows.
 */
export const sals = (options: Partial<SALSOptions> & Pick<SALSOptions, "projection">): Policy => {
  knownOptions("use sals", options, [...Object.keys(defaults), "projection"]);
  const { projection, budget, rank, ranked, sink, every, exempt } = { ...defaults, ...options };
  return {
    name: "sals",
    options: { ...defaults, ...options },
    budget,
    sink,
    layer(rows, memory) {
      if (exempt.includes(rows.layer) || exempt.includes(rows.layer - rows.layers)) return everyRow;
      const { slots, kvHeads, headDim, capacity, handle, active, scale } = rows;
      const width = kvHeads * headDim;
      const channels = Math.max(1, Math.round(rank * width));
      const leading = Math.max(1, Math.round(ranked * channels));
      const basisOf = (n: number) => memory.constant(projection.leading(rows.layer, width, n), [1, 1, width, n]);
      const [basis, coarse] = [basisOf(channels), basisOf(leading)];
      const latents = memory.perRow("f32", 1, channels);
      const scores = memory.scratch("f32", [slots, 1, capacity]);
      const best = memory.scratch("i32", [slots, 1, rows.budget]);
      const index = memory.scratch("i32", [slots, kvHeads, rows.budget]);
      const keys = memory.scratch("f32", [slots, kvHeads, rows.budget, headDim]);
      const values = memory.scratch("f32", [slots, kvHeads, rows.budget, headDim]);
      const bias = memory.tensor("f32", [slots, kvHeads, rows.budget], -Infinity);
      const rotations = memory.rotations();
      return {
        observe: (k, { slot, count, rotations }) => k.projectRows(latents, handle, rotations, basis, slot, count),
        due: (unbuiltRows, ended, earlier) => ended && (earlier.length === 0 || unbuiltRows >= every) ? unbuiltRows : 0,
        build(_k, { slot, begin, rows: count }) {
          const known = Math.min(rows.budget, begin + count - sink);
          for (let h = 0; h < kvHeads; h++) bias.write(new Float32Array(known), (slot * kvHeads + h) * rows.budget);
        },
        select(k, q, step) {
          k.projectRows(latents, handle, step.rotations, basis, STEP, slots);
          k.latentScores(scores, q, latents, coarse, step.rotations, handle, scale, sink);
          k.topk(best, scores, active);
          for (let plane = 0; plane < slots * kvHeads; plane++) k.copy(index, plane, best, Math.floor(plane / kvHeads), 1);
          k.reconstruct(keys, latents, basis, best, rotations, handle);
          k.gatherRows(values, rows.values, index);
          return { estimates: { centroids: keys, means: values, bias, rows: index } };
        },
        selectBytes: (builtRows) =>
          builtRows * leading * 4 + Math.min(rows.budget, builtRows) * (channels * 4 + kvHeads * rows.bytesPerRow / 2),
      };
    },
  };
};
