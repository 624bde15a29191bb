/** What the native decoder must know of a model. Every field of a config that changes the result ends up here or is refused by name. */
import type { TensorSpan } from "../formats/checkpoint.ts";
import type { ChatTemplate } from "../tokenizer/chat.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";

/** A model's rotary embedding. */
export interface Rope {
  /** Channels of a head that turn; the rest pass through. */
  readonly dim: number;
  /** The file keeps the two channels of a pair beside each other (llama architecture in GGUF): q and k rows are put back into halves. */
  readonly interleaved: boolean;
  /** dim / 2 of them, scaling included. */
  readonly inverseFrequencies: Float64Array;
  /** Multiplies cosines and sines (YaRN; else 1). */
  readonly attentionFactor: number;
}

/** A model's sizes and numbers. */
export interface ModelShape {
  /** "llama", "mistral", "qwen2" or "qwen3". */
  readonly family: string;
  /** Decoder layers. */
  readonly layers: number;
  /** Width of the residual stream. */
  readonly hidden: number;
  /** Query heads. */
  readonly heads: number;
  /** Key and value heads. */
  readonly kvHeads: number;
  /** Width of a head. */
  readonly headDim: number;
  /** Width between the feed-forward's products. */
  readonly intermediate: number;
  /** Tokens there are. */
  readonly vocab: number;
  /** Added to mean squares before their root. */
  readonly normEps: number;
  /** Tokens the model was trained to read. */
  readonly trainedContext: number;
  /** Its rotary embedding. */
  readonly rope: Rope;
  /** Per layer: the model's own sliding window in positions, or null. */
  readonly window: readonly (number | null)[];
  /** The token that begins a text. */
  readonly bos: number | null;
  /** Tokens that end a text. */
  readonly eos: readonly number[];
  /** Whether a text begins with `bos`. */
  readonly addBos: boolean;
}

/** Weights of one layer; null: the model has none. */
export interface LayerWeights {
  readonly attnNorm: TensorSpan;
  readonly q: TensorSpan;
  readonly k: TensorSpan;
  readonly v: TensorSpan;
  readonly o: TensorSpan;
  readonly qBias: TensorSpan | null;
  readonly kBias: TensorSpan | null;
  readonly vBias: TensorSpan | null;
  readonly oBias: TensorSpan | null;
  readonly qNorm: TensorSpan | null;
  readonly kNorm: TensorSpan | null;
  readonly ffnNorm: TensorSpan;
  readonly gate: TensorSpan;
  readonly up: TensorSpan;
  readonly down: TensorSpan;
}

export interface ModelWeights {
  readonly embed: TensorSpan;
  readonly outputNorm: TensorSpan;
  /** null: tied to `embed`. */
  readonly output: TensorSpan | null;
  readonly layers: readonly LayerWeights[];
}

/** How the model's makers would have tokens drawn, where they say so. */
export type ModelSampling = Readonly<Partial<Record<"temperature" | "topK" | "topP" | "minP" | "repetitionPenalty", number>>>;

export interface LoadedCheckpoint {
  readonly files: readonly string[];
  readonly shape: ModelShape;
  readonly weights: ModelWeights;
  readonly tokenizer: Tokenizer;
  /** How a conversation becomes tokens, where the model says so. */
  readonly chat: ChatTemplate | null;
  /** None: the likeliest token is taken. */
  readonly sampling?: ModelSampling;
}
