/**
 * Tiny decoders of every family, with random weights: their numbers, their RoPE scalings, their tensors by both of their names,
 * and the cases that the golden files hold. Hidden width 256, so that a row is a whole block of every format.
 */
import type { Dtype } from "./blocks.ts";

export type Family = "llama" | "mistral" | "qwen2" | "qwen3";

export interface Shape {
  family: Family;
  layers: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  theta: number;
  eps: number;
  tied: boolean;
  /** Positions that a layer sees, itself included (Mistral, from safetensors only: llama.cpp knows none for it). */
  window?: number;
}

export const HIDDEN = 256, INTERMEDIATE = 512, VOCAB = 2048, CONTEXT = 1024;

export const shapes: Record<Family, Shape> = {
  llama: { family: "llama", layers: 2, heads: 4, kvHeads: 2, headDim: 64, theta: 1e4, eps: 1e-5, tied: true },
  mistral: { family: "mistral", layers: 3, heads: 8, kvHeads: 2, headDim: 32, theta: 1e6, eps: 1e-5, tied: false },
  qwen2: { family: "qwen2", layers: 3, heads: 4, kvHeads: 2, headDim: 64, theta: 1e6, eps: 1e-6, tied: true },
  qwen3: { family: "qwen3", layers: 3, heads: 4, kvHeads: 2, headDim: 128, theta: 1e6, eps: 1e-6, tied: true },
};

export type Rope = "linear" | "llama3" | "yarn";

/** As config.json has them. The original contexts are short, so that scaling shows within some hundred tokens. */
export const scalings: Record<Rope, Record<string, string | number>> = {
  linear: { rope_type: "linear", factor: 4 },
  llama3: { rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 128 },
  yarn: { rope_type: "yarn", factor: 8, original_max_position_embeddings: 128 },
};

/** One tensor. Row-major [rows, width]; a vector has no rows. `role` tells what llama.cpp's mixes and its row order depend on. */
export interface TensorSpec {
  gguf: string;
  hf: string;
  rows?: number;
  width: number;
  mean: number;
  deviation: number;
  role?: "q" | "k" | "better" | "output";
}

// Attention of random weights is nearly even, and would hide a wrong rotation: queries and keys are larger by this factor,
// which gives scores a deviation of about 3. The last norm does the same for the logits.
const SHARP = 1.8, LOUD = 2.5;

export function tensorsOf(shape: Shape): TensorSpec[] {
  const { layers, heads, kvHeads, headDim, tied } = shape, list: TensorSpec[] = [];
  const qkNorm = shape.family === "qwen3", bias = shape.family === "qwen2";
  const matrix = (gguf: string, hf: string, rows: number, width: number, gain = 1, role?: TensorSpec["role"]) =>
    list.push({ gguf: `${gguf}.weight`, hf: `${hf}.weight`, rows, width, mean: 0, deviation: gain / Math.sqrt(width), role });
  const vector = (gguf: string, hf: string, width: number, mean: number, deviation: number) =>
    list.push({ gguf, hf, width, mean, deviation });

  matrix("token_embd", "model.embed_tokens", VOCAB, HIDDEN, 1, tied ? "output" : undefined);
  for (let layer = 0; layer < layers; layer++) {
    const g = `blk.${layer}`, h = `model.layers.${layer}`;
    // Which layers get more bits in llama.cpp's mixes: the first and last eighth, and every third between.
    const eighth = Math.floor(layers / 8);
    const more = layer < eighth || layer >= Math.floor(7 * layers / 8) || (layer - eighth) % 3 === 2 ? "better" : undefined;
    vector(`${g}.attn_norm.weight`, `${h}.input_layernorm.weight`, HIDDEN, 1, 0.1);
    matrix(`${g}.attn_q`, `${h}.self_attn.q_proj`, heads * headDim, HIDDEN, qkNorm ? 1 : SHARP, "q");
    matrix(`${g}.attn_k`, `${h}.self_attn.k_proj`, kvHeads * headDim, HIDDEN, qkNorm ? 1 : SHARP, "k");
    matrix(`${g}.attn_v`, `${h}.self_attn.v_proj`, kvHeads * headDim, HIDDEN, 1, more);
    if (bias) {
      vector(`${g}.attn_q.bias`, `${h}.self_attn.q_proj.bias`, heads * headDim, 0, 0.5);
      vector(`${g}.attn_k.bias`, `${h}.self_attn.k_proj.bias`, kvHeads * headDim, 0, 0.5);
      vector(`${g}.attn_v.bias`, `${h}.self_attn.v_proj.bias`, kvHeads * headDim, 0, 0.2);
    }
    if (qkNorm) {
      vector(`${g}.attn_q_norm.weight`, `${h}.self_attn.q_norm.weight`, headDim, SHARP, 0.2);
      vector(`${g}.attn_k_norm.weight`, `${h}.self_attn.k_norm.weight`, headDim, SHARP, 0.2);
    }
    matrix(`${g}.attn_output`, `${h}.self_attn.o_proj`, HIDDEN, heads * headDim);
    vector(`${g}.ffn_norm.weight`, `${h}.post_attention_layernorm.weight`, HIDDEN, 1, 0.1);
    matrix(`${g}.ffn_gate`, `${h}.mlp.gate_proj`, INTERMEDIATE, HIDDEN);
    matrix(`${g}.ffn_up`, `${h}.mlp.up_proj`, INTERMEDIATE, HIDDEN);
    matrix(`${g}.ffn_down`, `${h}.mlp.down_proj`, HIDDEN, INTERMEDIATE, 1, more);
  }
  vector("output_norm.weight", "model.norm.weight", HIDDEN, LOUD, 0.2);
  if (!tied) matrix("output", "lm_head", VOCAB, HIDDEN, 1, "output");
  return list;
}

/** What a GGUF file of a case holds. Q4_K_M and Q5_K_M are llama.cpp's mixes with Q6_K. */
export type FileType = Dtype | "Q4_K_M" | "Q5_K_M";

export interface GgufCase {
  name: string;
  family: Family;
  type: FileType;
  rope?: Rope;
}

const types: FileType[] = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q4_K_M", "Q5_K_M"];
const families: Family[] = ["llama", "mistral", "qwen2", "qwen3"];

export const ggufCases: GgufCase[] = [
  ...families.flatMap((family) => types.map((type) => ({ name: `${family}-${type}`, family, type }))),
  ...(["linear", "llama3", "yarn"] as const).map((rope) => ({
    name: `llama-F32-${rope}`,
    family: "llama" as const,
    type: "F32" as const,
    rope,
  })),
  { name: "qwen2-F32-yarn", family: "qwen2", type: "F32", rope: "yarn" },
  // What K mixes hold where rows are no multiple of 256.
  { name: "llama-Q4_1", family: "llama", type: "Q4_1" },
  { name: "qwen2-Q5_0", family: "qwen2", type: "Q5_0" },
  { name: "mistral-Q5_1", family: "mistral", type: "Q5_1" },
];

export interface DirectoryCase {
  name: string;
  family: Family;
  dtype: "F32" | "F16" | "BF16";
  rope?: Rope;
  window?: number;
  /** Files that the weights are spread over (1). */
  shards?: number;
}

const directories: Omit<DirectoryCase, "dtype">[] = [
  { name: "llama", family: "llama" },
  { name: "llama-linear", family: "llama", rope: "linear" },
  { name: "llama-llama3", family: "llama", rope: "llama3" },
  { name: "llama-yarn", family: "llama", rope: "yarn" },
  { name: "mistral", family: "mistral" },
  { name: "mistral-window", family: "mistral", window: 128 },
  { name: "qwen2", family: "qwen2", shards: 2 },
  { name: "qwen3", family: "qwen3" },
];

export const directoryCases: DirectoryCase[] = [
  ...directories.flatMap((one) => (["F32", "BF16"] as const).map((dtype) => ({ ...one, name: `${one.name}-${dtype}`, dtype }))),
  { name: "llama-F16", family: "llama", dtype: "F16" },
];
