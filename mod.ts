/** recallkv: long contexts from TypeScript, over a KV cache that is read only where it matters. */
export { generate, type GenerateOptions, type Prompt } from "./lib/generate.ts";
export type { AnswerOptions, BatchPiece } from "./lib/answers.ts";
export type { FinishReason, GenerateResult, GenerateStats, Generation, TokenLogprob } from "./lib/generation.ts";
export type { Chat, ChatMark, ChatOptions, SendOptions } from "./lib/chat.ts";
export type { ChatMessage } from "./lib/tokenizer/chat.ts";
export { load, type LoadedModel, type LoadOptions } from "./lib/model.ts";
export {
  type Attended,
  type DecodedToken,
  type DecodeOptions,
  type LogitsPlace,
  type PrefillOptions,
  type RestoreOptions,
  type Session,
  type SessionOptions,
} from "./lib/session.ts";
export type { LikelyToken, Sampling } from "./lib/sampling.ts";
export { type Mark } from "./lib/kv/mark.ts";
export { full } from "./lib/policies/full.ts";
export { slidingWindow, type SlidingWindowOptions } from "./lib/policies/sliding_window.ts";
export { clusterKV, type ClusterKVOptions } from "./lib/policies/cluster_kv.ts";
export { quest, type QuestOptions } from "./lib/policies/quest.ts";
export { snapKV, type SnapKVOptions } from "./lib/policies/snap_kv.ts";
export { h2o, type H2OOptions } from "./lib/policies/h2o.ts";
export { chunkKV, type ChunkKVOptions } from "./lib/policies/chunk_kv.ts";
export { pyramidInfer, type PyramidInferOptions } from "./lib/policies/pyramid_infer.ts";
export { infiniGen, type InfiniGenOptions } from "./lib/policies/infini_gen.ts";
export { sals, type SALSOptions } from "./lib/policies/sals.ts";
export { type Calibration, calibrationPath, LayerBases, loadCalibration, saveCalibration } from "./lib/calibration.ts";
export { calibrate, type CalibrateOptions } from "./lib/calibrate.ts";
export {
  type Allocator,
  type Attention,
  type Estimates,
  everyRow,
  type Kept,
  type Layer,
  type Place,
  type Policy,
  policyVersion,
  type Segment,
  type Selection,
  type Step,
} from "./lib/policies/policy.ts";
export type { Tensor } from "./lib/tensor.ts";
export type { Bundle, Kernels, LayerHandle, ModelHandle, Optional, RowsHandle, Run } from "./lib/kernels.ts";
export type { Device, OpTimes } from "./lib/device.ts";
export type { Rows } from "./lib/kv/store.ts";
export type { ModelShape, Rope } from "./lib/models/model.ts";
export type { EncodeOptions, TextDecoder, Tokenizer } from "./lib/tokenizer/tokenizer.ts";
export { RecallError } from "./lib/errors.ts";
export { type Fidelity, fidelity, type Witness } from "./lib/metrics/fidelity.ts";
export { type LayerView, Probe } from "./lib/metrics/probe.ts";
export type { AttendedRows } from "./lib/metrics/attended.ts";
export type { DType, KvDType, OnProgress, OnWarning, Progress, TensorData } from "./lib/types.ts";
