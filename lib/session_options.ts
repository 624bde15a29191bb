/** What one says to a session, and what it answers. */
import type { Policy } from "./policies/policy.ts";
import type { LikelyToken, Sampling } from "./sampling.ts";
import type { KvDType, OnProgress, OnWarning } from "./types.ts";

export interface SessionOptions {
  /** Which rows a step reads; `full()` unless said. */
  kv?: Policy;
  /** Sequences served by one step; 1 unless said. */
  slots?: number;
  /** Most tokens of a slot; the smaller of the trained context and 8,192 unless said. It costs memory only as rows arrive. */
  capacity?: number;
  /** dtype of the KV rows; f16 on the CPU, bf16 on CUDA unless said. */
  kvDtype?: KvDType;
  /** Prompt tokens per op; 256 unless said. */
  chunk?: number;
  /** Enqueue each step from TypeScript instead of replaying a recording: slower, for debugging a policy. */
  eager?: boolean;
  onWarning?: OnWarning;
}

export interface RestoreOptions extends Pick<SessionOptions, "kv" | "eager" | "onWarning"> {
  onProgress?: OnProgress;
}

export interface PrefillOptions {
  slot?: number;
  signal?: AbortSignal;
  onProgress?: OnProgress;
  /** "dense": attend every row (default); "sparse": token by token through the policy's own reading, as a generated token would be. */
  query?: "dense" | "sparse";
}

export interface DecodeOptions {
  /** Slots to decode; all that hold something unless said. */
  slots?: readonly number[];
  /** Most tokens per slot; as many as fit unless said. */
  maxTokens?: number;
  /** Tokens after which a slot ends (each is still yielded); the model's end tokens unless said. */
  stop?: readonly number[];
  /** How tokens are chosen: for all slots, or one for each slot by its number; the likeliest unless said. */
  sampling?: Sampling | readonly Sampling[];
  /** Sees a slot's logits (f32[vocab]) before each choice and may change them in place. The step then waits for it, and log-probabilities are of what it leaves. */
  onLogits?: (logits: Float32Array, place: LogitsPlace) => void | Promise<void>;
  signal?: AbortSignal;
}

/** Whose logits they are. */
export interface LogitsPlace {
  readonly slot: number;
  /** Place in the text of the token that is chosen from them. */
  readonly position: number;
}

export interface DecodedToken {
  readonly slot: number;
  readonly token: number;
  /** Natural logarithm of the probability the model gave it. */
  readonly logprob: number;
  /** The likeliest tokens, as many as `sampling.logprobs` asked for, best first. */
  readonly likeliest?: readonly LikelyToken[];
}

/** Rows that attention has read, summed over steps, layers and KV heads. */
export interface Attended {
  readonly steps: number;
  readonly sink: number;
  readonly index: number;
  readonly tail: number;
  readonly estimates: number;
}
