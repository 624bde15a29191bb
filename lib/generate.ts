/** generate(): text in, a stream of text out; what most people use. */
import { type AnswerOptions, answerOptions, answers, type BatchPiece, checkAnswer, samplingOf } from "./answers.ts";
import type { Job } from "./answer_stats.ts";
import { count } from "./format.ts";
import { type GenerateResult, Generation } from "./generation.ts";
import { defaultModel, load, type LoadedModel, type LoadOptions } from "./model.ts";
import { knownOptions, numberIn, shown } from "./options.ts";
import type { Policy } from "./policies/policy.ts";
import type { ChatMessage } from "./tokenizer/chat.ts";
import type { KvDType, OnWarning } from "./types.ts";

/** What may be continued: a text, a conversation (through the model's chat template), or token ids as they are. */
export type Prompt = string | readonly ChatMessage[] | readonly number[];

/** What to generate with, and how. */
export interface GenerateOptions extends AnswerOptions {
  /** A loaded model, or the path of one; the model that ships with recallkv unless said. */
  model?: LoadedModel | string;
  /** Of a model given by its path: where it runs, and how wide. */
  device?: LoadOptions["device"];
  /** Width of the CPU pool for it; all cores unless said. */
  threads?: number;
  /** Which KV rows each step reads; `full()`, every row, unless said. */
  kv?: Policy;
  /** Prompts of an array that are answered at the same time; all, but at most 8, unless said. */
  slots?: number;
  /** Most tokens of prompt and answer together; what the two need unless said. */
  capacity?: number;
  /** A prompt that does not fit loses tokens at its front instead of being refused. */
  dropFront?: boolean;
  /** dtype of the KV rows; f16 on the CPU, bf16 on CUDA unless said. */
  kvDtype?: KvDType;
  /** Control tokens written in a text ("<|end|>") become control tokens; they stay text unless said. */
  special?: boolean;
  /** What the chat template reads beside messages: tools, documents, enable_thinking. */
  variables?: Readonly<Record<string, unknown>>;
  /** Gets warnings, a sentence each; stderr unless said. */
  onWarning?: OnWarning;
}

const known = [
  ...answerOptions,
  "model",
  "device",
  "threads",
  "kv",
  "slots",
  "capacity",
  "dropFront",
  "kvDtype",
  "special",
  "variables",
  "onWarning",
];

/**
 * Continues a text, or answers a conversation. The object returned is an async iterable of text pieces and a promise of the result: iterate
 * it, then await it for `finishReason` and `stats`, or only await it. Nothing runs before one of the two; leaving the loop ends the work.
 *
 * ```ts
 * import { generate } from "recallkv";
 * const { text } = await generate("Once the storm had passed,", { maxTokens: 40 });
 * ```
 *
 * An array of prompts shares every pass over the weights; each gets the text that it would get alone, and a seed holds for each of them.
 * Pieces then say whose they are. Errors: TypeError, RangeError for options and prompts that make no sense; RecallError.
 */
export function generate(prompt: Prompt, options?: GenerateOptions): Generation;
/** The same for several prompts at once. */
export function generate(prompts: readonly Prompt[], options?: GenerateOptions): Generation<BatchPiece, GenerateResult[]>;
export function generate(
  prompt: Prompt | readonly Prompt[],
  options: GenerateOptions = {},
): Generation | Generation<BatchPiece, GenerateResult[]> {
  knownOptions("generate", options, known);
  checkAnswer("generate", options);
  if (options.slots !== undefined) numberIn("generate", "slots", options.slots, 1, 64, true);
  if (options.capacity !== undefined) numberIn("generate", "capacity", options.capacity, 1, 2 ** 24, true);
  if (!isBatch(prompt)) {
    checkPrompt(prompt);
    return new Generation<string, GenerateResult>((finish) => textOf(run([prompt], options, ([result]) => finish(result))));
  }
  prompt.forEach(checkPrompt);
  return new Generation<BatchPiece, GenerateResult[]>((finish) => run(prompt, options, finish));
}

/** Whether a prompt is several: its first element is one. */
function isBatch(prompt: Prompt | readonly Prompt[]): prompt is readonly Prompt[] {
  return Array.isArray(prompt) && (typeof prompt[0] === "string" || Array.isArray(prompt[0]));
}

function checkPrompt(prompt: unknown): void {
  if (typeof prompt === "string") return;
  if (!Array.isArray(prompt)) {
    throw new TypeError(`Cannot generate: prompt is ${typeof prompt}, want a text, messages, token ids, or an array of them`);
  }
  if (prompt.length === 0) throw new RangeError("Cannot generate: prompt is an empty array, want a text, messages or token ids");
  for (const part of prompt) {
    if (typeof part === typeof prompt[0] && (typeof part === "number" || (typeof part === "object" && part !== null && "role" in part))) {
      continue;
    }
    throw new TypeError(`Cannot generate: prompt has ${shown(part)}, want messages with a role, or token ids`);
  }
}

async function* textOf(pieces: AsyncGenerator<BatchPiece, void, undefined>): AsyncGenerator<string, void, undefined> {
  for await (const { text } of pieces) yield text;
}

async function* run(
  prompts: readonly Prompt[],
  options: GenerateOptions,
  finish: (results: GenerateResult[]) => void,
): AsyncGenerator<BatchPiece, void, undefined> {
  const { model: given, kv, kvDtype, device, threads, signal, onProgress, onWarning } = options;
  using loaded = typeof given === "string" ? await load(given, { device, threads, signal, onProgress, onWarning }) : undefined;
  const model = loaded ?? (given as LoadedModel | undefined) ?? await defaultModel();
  const { capacity, jobs } = jobsOf(model, prompts, options);
  const slots = Math.min(jobs.length, options.slots ?? 8);
  using session = model.session({ kv, slots, capacity, kvDtype, ...(onWarning && { onWarning }) });
  const results: GenerateResult[] = [];
  try {
    yield* answers(session, jobs, options, (index, result) => results[index] = result);
  } finally {
    finish(results);
  }
}

/** Prompts as tokens that fit, each with its own copy of the options of choice. */
function jobsOf(model: LoadedModel, prompts: readonly Prompt[], options: GenerateOptions): { capacity: number; jobs: Job[] } {
  const { maxTokens = 256, dropFront = false } = options;
  checkAnswer("generate", options, model.shape.vocab);
  const tokens = prompts.map((prompt) => tokensOf(model, prompt, options));
  const longest = Math.max(...tokens.map(({ length }) => length));
  const capacity = options.capacity ?? (Number.isFinite(maxTokens) ? longest + maxTokens : Math.max(longest, model.shape.trainedContext));
  const sampling = { seed: crypto.getRandomValues(new Uint32Array(1))[0], ...model.checkpoint.sampling, ...samplingOf(options) };
  const jobs = tokens.map((all, index) => ({ index, tokens: dropFront ? fitting(all, capacity - 1, model.shape.bos) : all, sampling }));
  for (const { tokens: { length } } of jobs) {
    if (length === 0) throw new RangeError("Cannot generate: the prompt has no tokens, want a text or at least one token");
    if (length > capacity) {
      throw new RangeError(
        `Cannot generate: a prompt has ${count(length)} tokens but the capacity is ${
          count(capacity)
        } (pass a larger capacity, or dropFront: true)`,
      );
    }
  }
  return { capacity, jobs };
}

/** The last tokens of a prompt, after the one that begins every text. */
function fitting(tokens: readonly number[], most: number, bos: number | null): readonly number[] {
  if (tokens.length <= most) return tokens;
  return tokens[0] === bos && most > 1 ? [bos, ...tokens.slice(tokens.length - most + 1)] : tokens.slice(tokens.length - most);
}

function tokensOf(model: LoadedModel, prompt: Prompt, { special = false, variables }: GenerateOptions): readonly number[] {
  const { tokenizer, shape, checkpoint: { chat } } = model;
  if (typeof prompt === "string") return tokenizer.encode(prompt, { bos: shape.addBos && !special, special });
  if (typeof prompt[0] === "number") return prompt as readonly number[];
  if (!chat) throw new RangeError("Cannot generate: the model has no chat template, want a text or token ids as its prompt");
  return chat.encode(tokenizer, prompt as readonly ChatMessage[], { variables });
}
