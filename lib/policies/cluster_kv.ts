import { allocateClusters, clusterKeys } from "../cluster/cluster_keys.ts";
import { everyRow, type Policy } from "./policy.ts";

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
}

const defaults: ClusterKVOptions = {
  budget: 1024,
  sink: 16,
  tokensPerCluster: 80,
  iterations: 20,
  exempt: [0, 1],
  segment: 8192,
  every: 320,
};

/**
 * ClusterKV (arXiv 2412.03213): keys are grouped into semantic clusters per KV head; a step ranks the clusters by their centroids (here
 * summed over the heads of a group, RetroInfer, arXiv 2505.02922) and reads the rows of the best until the budget is full.
 * Bytes per step and layer: (sink + budget + tail) * kvHeads * 2 row bytes + clusters * kvHeads * (4 headDim + 4). Memory: the rows, and
 * 4 headDim + 4 bytes per cluster and KV head. Fails where many rows matter alike (counting words): what is not read weighs nothing.
 */
export const clusterKV = (options: Partial<ClusterKVOptions> = {}): Policy => {
  const { budget, sink, tokensPerCluster, iterations, exempt, segment, every } = { ...defaults, ...options };
  return {
    name: "clusterKV",
    budget,
    sink,
    layer(rows, memory) {
      if (exempt.includes(rows.layer)) return everyRow;
      const clusters = allocateClusters(memory, rows, tokensPerCluster, Math.min(every, segment), Math.max(every, segment));
      const index = memory.scratch("i32", [rows.slots, rows.kvHeads, rows.budget]);
      return {
        due: (unbuiltRows, ended) => ended ? (unbuiltRows >= every ? unbuiltRows : 0) : unbuiltRows >= segment ? segment : 0,
        build: (k, run) => clusterKeys(k, rows, run, clusters, iterations),
        select(k, q) {
          k.centroidScores(clusters.scores, q, clusters.centroids, null, clusters.offsets, clusters.count, rows.active, rows.scale, 0);
          k.topk(clusters.ranked, clusters.scores, rows.active);
          k.fillBudget(index, clusters.ranked, clusters.offsets, rows.active);
          return { index };
        },
        selectBytes: (builtRows) => Math.round(builtRows / tokensPerCluster) * rows.kvHeads * (4 * rows.headDim + 4),
      };
    },
  };
};
