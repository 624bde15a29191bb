/** Keys of a layer -> centroids, members, offsets; rows put into cluster order, so that a recalled cluster is one contiguous read. */
import type { Kernels } from "../kernels.ts";
import type { Rows } from "../kv/store.ts";
import type { Allocator, Segment } from "../policies/policy.ts";
import type { Tensor } from "../tensor.ts";
import { assignWork, kmeans } from "./kmeans.ts";

/** The clusters of one layer. Only centroids, offsets and count are state; the rest is room to work in. */
export interface Clusters {
  /** f32[slots, kvHeads, maxClusters, headDim]: means of the members' keys. */
  readonly centroids: Tensor;
  /** i32[slots, kvHeads, maxClusters + 1]: cluster c is rows [offsets[c], offsets[c + 1]). */
  readonly offsets: Tensor;
  /** i32[slots]: clusters in use. */
  readonly count: Tensor;
  /** f32[slots, kvHeads, maxClusters]: the farthest member's distance, where it is asked for. */
  readonly radius: Tensor | null;
  /** f32[slots, kvHeads, maxClusters, headDim]: means of the members' values, where they are asked for. */
  readonly means: Tensor | null;
  /** f32[slots, kvHeads or heads, maxClusters]. */
  readonly scores: Tensor;
  /** i32[slots, kvHeads or heads, min(maxClusters, budget)]: cluster ids, best first. */
  readonly ranked: Tensor;
  /** i32[slots, kvHeads, capacity]: the cluster of each row. */
  readonly labels: Tensor;
  /** i32[slots, kvHeads, capacity]: rows by cluster. */
  readonly order: Tensor;
  /** i32[slots, kvHeads]: 1 while labels change. */
  readonly moved: Tensor;
  /** f32: scratch. */
  readonly work: Tensor;
  /** Rows per cluster, on average. */
  readonly tokensPerCluster: number;
}

/** Clusters of a segment: one per `tokensPerCluster` rows, at least one. */
export function clustersOf(rows: number, tokensPerCluster: number): number {
  return Math.max(1, Math.round(rows / tokensPerCluster));
}

/** How many clusters, and what is kept of them. */
export interface ClusterOptions {
  /** Rows per cluster, on average. */
  readonly tokensPerCluster: number;
  /** Fewest and most rows of a segment; 1 and the capacity unless said. */
  readonly shortest?: number;
  /** Most rows of a segment; the capacity unless said. */
  readonly longest?: number;
  /** Rank for every query head, not for every KV head. */
  readonly perHead?: boolean;
  /** Keep the farthest member's distance. */
  readonly radius?: boolean;
  /** Keep the means of the members' values. */
  readonly means?: boolean;
}

/** Memory for the clusters of one layer. */
export function allocateClusters(memory: Allocator, rows: Rows, options: ClusterOptions): Clusters {
  const { slots, kvHeads, capacity, headDim } = rows;
  const { tokensPerCluster, shortest = 1, longest = capacity, perHead = false, radius = false, means = false } = options;
  const ranks = perHead ? rows.heads : kvHeads;
  const segments = Math.ceil(capacity / shortest);
  const most = Math.ceil(capacity / tokensPerCluster) + segments;
  const run = Math.min(capacity, longest);
  const permuteWork = (kvHeads * run * rows.keys.rowBytes) / 4;
  return {
    centroids: memory.tensor("f32", [slots, kvHeads, most, headDim]),
    offsets: memory.tensor("i32", [slots, kvHeads, most + 1]),
    count: memory.tensor("i32", [slots]),
    radius: radius ? memory.tensor("f32", [slots, kvHeads, most]) : null,
    means: means ? memory.tensor("f32", [slots, kvHeads, most, headDim]) : null,
    scores: memory.scratch("f32", [slots, ranks, most]),
    ranked: memory.scratch("i32", [slots, ranks, Math.min(most, rows.budget)]),
    labels: memory.scratch("i32", [slots, kvHeads, capacity]),
    order: memory.scratch("i32", [slots, kvHeads, capacity]),
    moved: memory.scratch("i32", [slots, kvHeads]),
    work: memory.scratch("f32", [Math.ceil(Math.max(permuteWork, assignWork(kvHeads, run, most)))]),
    tokensPerCluster,
  };
}

/** Enqueues the clustering of a segment, puts its rows into cluster order, and shows the new clusters to `select`. */
export function clusterKeys(k: Kernels, rows: Rows, segment: Segment, clusters: Clusters, iterations: number): void {
  const { tokensPerCluster } = clusters;
  const first = segment.earlier.reduce((sum, length) => sum + clustersOf(length, tokensPerCluster), 0);
  const added = clustersOf(segment.rows, tokensPerCluster);
  const run = Int32Array.of(segment.slot, segment.begin, segment.rows, first, added);
  const { centroids, order, offsets, radius, means } = clusters;
  kmeans(k, { ...clusters, keys: rows.keys }, run, iterations);
  if (radius) k.radius(radius, rows.keys, centroids, order, offsets, run);
  if (means) k.centroidMeans(means, rows.values, order, offsets, null, run);
  for (const tensor of [rows.keys, rows.values, rows.position]) k.permuteRows(tensor, order, clusters.work, run);
  clusters.count.write(Int32Array.of(first + added), segment.slot);
}
