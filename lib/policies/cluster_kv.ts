import { allocateClusters, clusterKeys, clustersOf } from "../cluster/cluster_keys.ts";
import { knownOptions } from "../options.ts";
import { everyRow, type Policy } from "./policy.ts";

/** Options of `clusterKV`. */
export interface ClusterKVOptions {
  /** Rows recalled per KV head and step, beside sink and tail: a number or a fraction of the capacity. */
  budget: number | string;
  /** First rows: attention sinks, outliers among the keys, never clustered. */
  sink: number;
  /** Rows per cluster: a segment of n rows gets max(1, round(n / tokensPerCluster)) clusters. */
  tokensPerCluster: number;
  /** Most rounds of k-means; it ends earlier when no label changes. */
  iterations: number;
  /** Layers that read every row. */
  exempt: readonly number[];
  /** Prompt rows per segment; `Infinity` clusters the whole prompt at once, as the paper does, at quadratic cost. */
  segment: number;
  /** Generated rows that are clustered together. */
  every: number;
  /** Clusters are ranked by q . centroid + bound * |q| * radius: 0 is the paper, 1 the most that any member can score (ArkVale). */
  bound: number;
  /** Choose for every query head, as the paper does; a KV head's group chooses together unless said. */
  perHead: boolean;
  /** Clusters that were not chosen enter attention as one row each: centroid, mean value, ln(size) (RetroInfer). */
  estimate: boolean;
}

const defaults: ClusterKVOptions = {
  budget: 1024,
  sink: 16,
  tokensPerCluster: 80,
  iterations: 20,
  exempt: [0, 1],
  segment: 8192,
  every: 320,
  bound: 0,
  perHead: false,
  estimate: false,
};

/**
 * ClusterKV (arXiv 2412.03213): keys are grouped into semantic clusters per KV head; a step ranks the clusters by their centroids (here
 * summed over the heads of a group, RetroInfer, arXiv 2505.02922) and reads the rows of the best until the budget is full.
 * Bytes per step and layer: (sink + budget + tail) * kvHeads * 2 row bytes + clusters * kvHeads * (4 headDim + 4), and as much again with
 * `estimate`. Memory: the rows, and 4 headDim + 4 bytes per cluster and KV head. Fails where many rows matter alike (counting words, many
 * like facts at a small budget): without `estimate`, what is not read weighs nothing.
 */
export const clusterKV = (options: Partial<ClusterKVOptions> = {}): Policy => {
  knownOptions("use clusterKV", options, Object.keys(defaults));
  const { budget, sink, tokensPerCluster, iterations, exempt, segment, every, bound, perHead, estimate } = { ...defaults, ...options };
  if (perHead && estimate) throw new TypeError("Cannot use estimate with perHead: estimates belong to a KV head, want one of the two");
  return {
    name: "clusterKV",
    options: { ...defaults, ...options },
    budget,
    sink,
    layer(rows, memory) {
      if (exempt.includes(rows.layer)) return everyRow;
      const { slots, kvHeads, heads, active, scale } = rows;
      const clusters = allocateClusters(memory, rows, {
        tokensPerCluster,
        shortest: Math.min(every, segment),
        longest: Math.max(every, segment),
        perHead,
        radius: bound !== 0,
        means: estimate,
      });
      const { centroids, offsets, count, radius, means, scores, ranked } = clusters;
      const index = memory.scratch("i32", [slots, perHead ? heads : kvHeads, rows.budget]);
      const bias = means && memory.scratch("f32", scores.shape);
      return {
        due: (unbuiltRows, ended) => ended ? (unbuiltRows >= every ? unbuiltRows : 0) : unbuiltRows >= segment ? segment : 0,
        build: (k, run) => clusterKeys(k, rows, run, clusters, iterations),
        select(k, q) {
          k.centroidScores(scores, q, centroids, radius, offsets, count, active, scale, bound);
          k.topk(ranked, scores, active);
          if (!means || !bias) {
            k.fillBudget(index, ranked, offsets, active);
            return { index };
          }
          k.fillWhole(index, bias, ranked, offsets, count, active);
          return { index, estimates: { centroids, means, bias } };
        },
        clusters: (segments) => segments.reduce((sum, length) => sum + clustersOf(length, tokensPerCluster), 0),
        selectBytes: (builtRows) =>
          Math.round(builtRows / tokensPerCluster) * kvHeads * (4 * rows.headDim + (bound ? 8 : 4)) * (estimate ? 2 : 1),
      };
    },
  };
};
