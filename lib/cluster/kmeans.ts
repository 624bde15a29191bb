/** The loop of k-means, once, for every device. */
import type { Kernels, Run } from "../kernels.ts";
import type { Tensor } from "../tensor.ts";

/** What k-means works on, per slot and KV head; shapes as ffi/recallkv.h has them. */
export interface KmeansTensors {
  /** [slots, kvHeads, capacity, headDim]. */
  readonly keys: Tensor;
  /** f32[slots, kvHeads, maxClusters, headDim]. */
  readonly centroids: Tensor;
  /** i32[slots, kvHeads, capacity]. */
  readonly labels: Tensor;
  /** i32[slots, kvHeads, capacity]. */
  readonly order: Tensor;
  /** i32[slots, kvHeads, maxClusters + 1]. */
  readonly offsets: Tensor;
  /** i32[slots, kvHeads]: 1 while labels change. */
  readonly moved: Tensor;
  /** f32: scratch, as `assignWork` says. */
  readonly work: Tensor;
}

/**
 * Clusters the rows of `run`: evenly spaced initial centroids, assignment by cosine, raw means. It ends when no label changes, or after
 * `iterations` rounds; the host never asks, a flag on the device makes the remaining rounds return at once. The last act is an update,
 * so each centroid is the mean of its members; `order` and `offsets` hold those members.
 * Source: ClusterKV (arXiv 2412.03213) 3.2.
 */
export function kmeans(k: Kernels, t: KmeansTensors, run: Run, iterations: number): void {
  k.seedCentroids(t.centroids, t.labels, t.moved, t.keys, run);
  for (let round = 0; round < iterations; round++) {
    k.assign(t.labels, t.moved, t.keys, t.centroids, t.work, run);
    k.group(t.order, t.offsets, t.labels, t.moved, run);
    k.centroidMeans(t.centroids, t.keys, t.order, t.offsets, t.moved, run);
  }
}

/** Floats of `work` that `assign` needs for `rows` rows and `clusters` clusters. Rows are cut into pieces of 256. */
export function assignWork(kvHeads: number, rows: number, clusters: number): number {
  return kvHeads * (clusters + Math.ceil(rows / 256));
}
