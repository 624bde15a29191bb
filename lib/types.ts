/** Words shared by all of lib/: what a tensor may hold, and how far a long work has come. */

/** dtypes of tensors; a `q8` row is headDim signed bytes and one f32 scale. The order is the library's numbering. */
export const dtypes: readonly DType[] = ["f32", "f16", "bf16", "i32", "u32", "q8"];
/** dtypes of tensors. */
export type DType = "f32" | "f16" | "bf16" | "i32" | "u32" | "q8";

/** What the numbers of each dtype come back as. */
export interface DataOf {
  /** As they are. */
  f32: Float32Array;
  /** As they are. */
  i32: Int32Array;
  /** As they are. */
  u32: Uint32Array;
  /** Bits. */
  f16: Uint16Array;
  /** Bits. */
  bf16: Uint16Array;
  /** Rows of signed bytes, each followed by its f32 scale. */
  q8: Uint8Array;
}

/** dtypes that KV rows may have. */
export type KvDType = "f32" | "f16" | "bf16" | "q8";

/** What a tensor's elements come back as: 16-bit floats and `q8` rows raw. */
export type TensorData = Float32Array | Uint16Array | Int32Array | Uint32Array | Uint8Array;

/** Types of weights as model files hold them, in the library's numbering. */
export const weightTypes = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q5_k", "q6_k", "q4_1", "q5_0", "q5_1"] as const;
export type WeightType = (typeof weightTypes)[number];

/** How far a long work has come. `done` and `total` are in `unit`. */
export interface Progress {
  /** What is being done. */
  readonly stage: "load" | "prefill" | "calibrate" | "restore" | "pull";
  /** How far it is. */
  readonly done: number;
  /** How far it will go. */
  readonly total: number;
  /** What both count. */
  readonly unit: "bytes" | "tokens" | "layers";
}

/** Is told how far a long work has come. */
export type OnProgress = (progress: Progress) => void;
/** Gets a warning, as a sentence. */
export type OnWarning = (sentence: string) => void;
