/** Every policy there is, in a setting that reads few rows of a 600-token prompt, and in one that reads every row of it. */
import { LayerBases } from "../../lib/calibration.ts";
import { chunkKV } from "../../lib/policies/chunk_kv.ts";
import { clusterKV } from "../../lib/policies/cluster_kv.ts";
import { full } from "../../lib/policies/full.ts";
import { type Policy } from "../../lib/policies/policy.ts";
import { h2o } from "../../lib/policies/h2o.ts";
import { infiniGen } from "../../lib/policies/infini_gen.ts";
import { pyramidInfer } from "../../lib/policies/pyramid_infer.ts";
import { quest } from "../../lib/policies/quest.ts";
import { sals } from "../../lib/policies/sals.ts";
import { snapKV } from "../../lib/policies/snap_kv.ts";
import { slidingWindow } from "../../lib/policies/sliding_window.ts";

export interface Contestant {
  name: string;
  /** Reads few rows of a 600-token prompt. */
  small: () => Policy;
  /** Reads every row of it. */
  whole: () => Policy;
}

export const contestants: Contestant[] = [
  { name: "full", small: full, whole: full },
  { name: "slidingWindow", small: () => slidingWindow({ window: 60 }), whole: () => slidingWindow({ window: 1024 }) },
  {
    name: "clusterKV",
    small: () => clusterKV({ budget: 60, tokensPerCluster: 16, exempt: [1], every: 40 }),
    whole: () => clusterKV({ budget: 1024, exempt: [] }),
  },
  {
    name: "clusterKV in segments",
    small: () => clusterKV({ budget: 60, tokensPerCluster: 8, exempt: [], segment: 200, every: 32 }),
    whole: () => clusterKV({ budget: 1024, exempt: [], segment: 100, every: 50 }),
  },
  {
    name: "clusterKV with bound, per head",
    small: () => clusterKV({ budget: 60, tokensPerCluster: 16, exempt: [0], every: 40, bound: 0.3, perHead: true }),
    whole: () => clusterKV({ budget: 1024, exempt: [], bound: 0.3, perHead: true }),
  },
  {
    name: "clusterKV with estimates",
    small: () => clusterKV({ budget: 60, tokensPerCluster: 16, exempt: [0], every: 40, estimate: true }),
    whole: () => clusterKV({ budget: 1024, exempt: [], estimate: true }),
  },
  {
    name: "quest",
    small: () => quest({ budget: 64, exempt: [0] }),
    whole: () => quest({ budget: 1024, exempt: [] }),
  },
  {
    name: "quest by group",
    small: () => quest({ budget: 60, page: 8, sink: 16, perHead: false, exempt: [] }),
    whole: () => quest({ budget: 1024, page: 8, sink: 16, perHead: false, exempt: [] }),
  },
  { name: "snapKV", small: () => snapKV({ budget: 100 }), whole: () => snapKV({ budget: 1024 }) },
  {
    name: "snapKV per head",
    small: () => snapKV({ budget: 100, perHead: true, pooling: "max", kernel: 7 }),
    whole: () => snapKV({ budget: 1024, perHead: true }),
  },
  { name: "h2o", small: () => h2o({ budget: 100 }), whole: () => h2o({ budget: 1024 }) },
  { name: "h2o with rates", small: () => h2o({ budget: 100, recent: 0.2, rates: true }), whole: () => h2o({ budget: 1024, rates: true }) },
  { name: "chunkKV", small: () => chunkKV({ budget: 100 }), whole: () => chunkKV({ budget: 1024 }) },
  { name: "pyramidInfer", small: () => pyramidInfer(), whole: () => pyramidInfer({ least: 1024, every: 1024 }) },
  {
    name: "infiniGen",
    small: () => infiniGen({ skew: identity("skew"), budget: 60 }),
    whole: () => infiniGen({ skew: identity("skew"), budget: 1024, partial: 1, alpha: Infinity }),
  },
  {
    name: "sals",
    small: () => sals({ projection: identity("projection"), budget: 60, exempt: [0] }),
    whole: () => sals({ projection: identity("projection"), budget: 1024, rank: 1, ranked: 1, exempt: [] }),
  },
];
/** Bases of the nano model that leave keys as they are. */
function identity(kind: "skew" | "projection"): LayerBases {
  const [layers, kvHeads, headDim] = [6, 3, 32];
  const [copies, width] = kind === "skew" ? [kvHeads, headDim] : [1, kvHeads * headDim];
  const basis = Float32Array.from({ length: copies * width * width }, (_, i) => Math.floor(i / width) % width === i % width ? 1 : 0);
  return new LayerBases(kind, copies > 1 ? [copies, width, width] : [width, width], new Array(layers).fill(basis));
}
