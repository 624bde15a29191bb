/** recallkv/cluster: what policies are made of. */
export { allocateClusters, clusterKeys, type ClusterOptions, type Clusters, clustersOf } from "./cluster_keys.ts";
export { kmeans, type KmeansTensors } from "./kmeans.ts";
export { type Allocator, everyRow, type Layer, type Policy, type Segment, type Selection } from "../policies/policy.ts";
export type { Rows } from "../kv/store.ts";
