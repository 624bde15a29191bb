/** recallkv: long contexts from TypeScript, over a KV cache that is read only where it matters. */
export {
  type FinishReason,
  generate,
  type GenerateOptions,
  type GenerateResult,
  type GenerateStats,
  type Generation,
} from "./lib/generate.ts";
export { load, type LoadedModel, type LoadOptions } from "./lib/model.ts";
export { type DecodedToken, type DecodeOptions, type PrefillOptions, type Session, type SessionOptions } from "./lib/session.ts";
export { type Mark } from "./lib/kv/mark.ts";
export { full } from "./lib/policies/full.ts";
export { slidingWindow, type SlidingWindowOptions } from "./lib/policies/sliding_window.ts";
export { clusterKV, type ClusterKVOptions } from "./lib/policies/cluster_kv.ts";
export { type Allocator, everyRow, type Layer, type Policy, type Segment, type Selection } from "./lib/policies/policy.ts";
export { RecallError } from "./lib/errors.ts";
export type { AttendedRows } from "./lib/metrics/attended.ts";
export type { KvDType, OnProgress, OnWarning, Progress } from "./lib/types.ts";
