/** Policies by name, as the command line and saved sessions know them. */
import { clusterKV } from "./cluster_kv.ts";
import { full } from "./full.ts";
import type { Policy } from "./policy.ts";
import { slidingWindow } from "./sliding_window.ts";

export const policies = { full, slidingWindow, clusterKV } as const satisfies Record<string, (options?: never) => Policy>;
export type PolicyName = keyof typeof policies;
