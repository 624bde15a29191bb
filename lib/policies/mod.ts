/** Policies by name, as the command line and saved sessions know them. */
import { chunkKV } from "./chunk_kv.ts";
import { clusterKV } from "./cluster_kv.ts";
import { full } from "./full.ts";
import { h2o } from "./h2o.ts";
import type { Policy } from "./policy.ts";
import { pyramidInfer } from "./pyramid_infer.ts";
import { quest } from "./quest.ts";
import { slidingWindow } from "./sliding_window.ts";
import { snapKV } from "./snap_kv.ts";

/** Those that need nothing beside a model; infiniGen and sals need its calibration. */
export const policies = { full, slidingWindow, clusterKV, quest, snapKV, h2o, chunkKV, pyramidInfer } as const satisfies Record<
  string,
  (options?: never) => Policy
>;
export type PolicyName = keyof typeof policies;
