/** What one says to a session, and what it answers. */
import { flagIn, knownOptions, numberIn, oneOf } from "./options.ts";
import type { Policy } from "./policies/policy.ts";
import type { LikelyToken, Sampling } from "./sampling.ts";
import type { KvDType, OnProgress, OnWarning } from "./types.ts";

/** What a session is made with. */
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
  /** Gets warnings, a sentence each; stderr unless said. */
  onWarning?: OnWarning;
}

/** How a saved session comes back. */
export interface RestoreOptions extends Pick<SessionOptions, "kv" | "eager" | "onWarning"> {
  /** Is told how far it is. */
  onProgress?: OnProgress;
}

/** How a prompt is read. */
export interface PrefillOptions {
  /** Which sequence of the batch. */
  slot?: number;
  /** Ends the work early. */
  signal?: AbortSignal;
  /** Is told how far it is. */
  onProgress?: OnProgress;
  /** "dense": attend every row (default); "sparse": token by token through the policy's own reading, as a generated token would be. */
  query?: "dense" | "sparse";
  /**
   * The tokens are the slot's whole text: what it holds of it already is not read again. Where the two texts part, it goes back to the last
   * mark before that place, or drops what follows where the policy leaves rows in place, or begins anew. An aborted call leaves what the
   * two texts share.
   */
  reuse?: boolean;
  /** Called between blocks of the prompt: other slots may be decoded meanwhile, and wait no longer than a block takes. */
  between?: () => Promise<void>;
}

/** How tokens are decoded. */
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
  /**
   * Read each token on the device while it is on its way to the caller, so that the device never waits for the host. When the loop is left early
   * the slot then holds the last token already, and within the loop `logits` may be those after it. On a GPU unless said, and never with
   * `onLogits`.
   */
  ahead?: boolean;
  /** Ends the work early. */
  signal?: AbortSignal;
}

/** Whose logits they are. */
export interface LogitsPlace {
  /** Which sequence of the batch. */
  readonly slot: number;
  /** Place in the text of the token that is chosen from them. */
  readonly position: number;
}

/** A token that was decoded. */
export interface DecodedToken {
  /** Which sequence of the batch. */
  readonly slot: number;
  /** Its id. */
  readonly token: number;
  /** Natural logarithm of the probability the model gave it. */
  readonly logprob: number;
  /** The likeliest tokens, as many as `sampling.logprobs` asked for, best first. */
  readonly likeliest?: readonly LikelyToken[];
}

/** Rows that attention has read, summed over steps, layers and KV heads. */
export interface Attended {
  /** Steps that were taken. */
  readonly steps: number;
  /** Of the first rows. */
  readonly sink: number;
  /** Of the rows that were chosen. */
  readonly index: number;
  /** Of the last rows. */
  readonly tail: number;
  /** Clusters that were not chosen, one row each. */
  readonly estimates: number;
}

const sessionOptions = ["kv", "slots", "capacity", "kvDtype", "chunk", "eager", "onWarning"];
const prefillOptions = ["slot", "signal", "onProgress", "query", "reuse", "between"];
const decodeOptions = ["slots", "maxTokens", "stop", "sampling", "onLogits", "ahead", "signal"];
export const restoreOptions: readonly string[] = ["kv", "eager", "onWarning", "onProgress"];

/** Refuses what makes no sense. Errors: TypeError, RangeError. */
export function checkSession(options: SessionOptions): void {
  knownOptions("make a session", options, sessionOptions);
  if (options.kvDtype !== undefined) oneOf("make a session", "kvDtype", options.kvDtype, ["f32", "f16", "bf16", "q8"]);
}

export function checkPrefill(options: PrefillOptions): void {
  knownOptions("prefill", options, prefillOptions);
  if (options.query !== undefined) oneOf("prefill", "query", options.query, ["dense", "sparse"]);
}

export function checkDecode(options: DecodeOptions): void {
  knownOptions("decode", options, decodeOptions);
  if (options.maxTokens !== undefined) numberIn("decode", "maxTokens", options.maxTokens, 0, Infinity, true);
  flagIn("decode", "ahead", options.ahead);
}
