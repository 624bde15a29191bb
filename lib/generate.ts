/** generate(): text in, a stream of text out; what most people use. */
import { type AttendedRows, attendedRows, bytesPerRow } from "./metrics/attended.ts";
import { defaultModel, load, type LoadedModel } from "./model.ts";
import { type Attended, Session } from "./session.ts";
import type { Policy } from "./policies/policy.ts";
import type { KvDType, OnProgress, OnWarning } from "./types.ts";

export interface GenerateOptions {
  /** A loaded model, or the path of one; the model that ships with recallkv unless said. */
  model?: LoadedModel | string;
  /** Which KV rows each step reads; `full()`, every row, unless said. */
  kv?: Policy;
  /** Most tokens to generate; 256 unless said. */
  maxTokens?: number;
  /** Most tokens of prompt and answer together; what the two need unless said. */
  capacity?: number;
  kvDtype?: KvDType;
  /** Control tokens written in the prompt ("<|end|>") become control tokens; they stay text unless said. */
  special?: boolean;
  signal?: AbortSignal;
  onProgress?: OnProgress;
  onWarning?: OnWarning;
}

/** Why a text ended: the model said so, a limit was reached, or the caller had enough. */
export type FinishReason = "stop" | "length" | "abort";

export interface GenerateStats {
  readonly promptTokens: number;
  readonly generatedTokens: number;
  /** From the call to the first token, loading not counted. */
  readonly secondsToFirstToken: number;
  /** Generated tokens per second, the first not counted. */
  readonly tokensPerSecond: number;
  /** Rows of the index, per head; 0 for policies without one. */
  readonly budget: number;
  /** Rows read per head and step: means over steps and all layers, exempt ones included. */
  readonly attendedRows: AttendedRows;
  /** Bytes of KV rows and of what the policy's selection reads, per step. */
  readonly bytesPerStep: number;
  /** The same if every row were read. */
  readonly fullBytesPerStep: number;
}

export interface GenerateResult {
  readonly text: string;
  readonly tokens: readonly number[];
  readonly finishReason: FinishReason;
  readonly stats: GenerateStats;
}

/**
 * Continues a text. The object returned is an async iterable of text pieces and a promise of the result: iterate it, then await it for
 * `finishReason` and `stats`, or only await it. Nothing runs before one of the two; leaving the loop ends the work.
 *
 * ```ts
 * import { generate } from "recallkv";
 * const { text } = await generate("Once the storm had passed,", { maxTokens: 40 });
 * ```
 */
export function generate(prompt: string, options: GenerateOptions = {}): Generation {
  if (typeof prompt !== "string") throw new TypeError(`Cannot generate: prompt is ${typeof prompt}, want a string`);
  return new Generation(prompt, options);
}

export class Generation implements AsyncIterable<string>, PromiseLike<GenerateResult> {
  #pieces: AsyncGenerator<string, void, undefined> | undefined;
  #result: GenerateResult | undefined;
  #drained: Promise<GenerateResult> | undefined;

  constructor(private readonly prompt: string, private readonly options: GenerateOptions) {}

  /** Pieces of text as they come. One iterator at a time: a second one is a TypeError. */
  [Symbol.asyncIterator](): AsyncGenerator<string, void, undefined> {
    if (this.#pieces) {
      throw new TypeError("Cannot iterate a generation twice: its pieces were taken already, want one loop (await it for the whole text)");
    }
    this.#pieces = pieces(this.prompt, this.options, (result) => this.#result = result);
    return this.#pieces;
  }

  then<A = GenerateResult, B = never>(
    fulfilled?: ((result: GenerateResult) => A | PromiseLike<A>) | null,
    rejected?: ((reason: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    this.#drained ??= this.#drain();
    return this.#drained.then(fulfilled, rejected);
  }

  async #drain(): Promise<GenerateResult> {
    if (!this.#pieces) { for await (const _ of this); }
    if (!this.#result) {
      throw new TypeError("Cannot await a generation while its pieces are being taken: want the loop ended first");
    }
    return this.#result;
  }
}

async function* pieces(
  prompt: string,
  options: GenerateOptions,
  finish: (result: GenerateResult) => void,
): AsyncGenerator<string, void, undefined> {
  const { maxTokens = 256, signal, onProgress, onWarning } = options;
  if (!Number.isInteger(maxTokens) || maxTokens < 1) {
    throw new RangeError(`Cannot generate: maxTokens is ${maxTokens}, want a whole number from 1`);
  }
  const model = await pickModel(options);
  const { tokenizer, shape } = model;
  const promptTokens = tokenizer.encode(prompt, { bos: shape.addBos && !options.special, special: options.special });
  const capacity = options.capacity ?? promptTokens.length + maxTokens;
  using session = new Session(model, { kv: options.kv, capacity, kvDtype: options.kvDtype, onWarning: onWarning ?? console.warn });
  const decoder = tokenizer.decoder();
  const tokens: number[] = [];
  let text = "";
  let finishReason: FinishReason = "abort";
  let before: Attended | undefined;
  const began = performance.now();
  let first = 0;
  try {
    await session.prefill(promptTokens, { signal, onProgress });
    before = await session.attended();
    for await (const { token } of session.decode({ maxTokens, signal })) {
      if (tokens.length === 0) first = performance.now();
      tokens.push(token);
      if (shape.eos.includes(token)) {
        finishReason = "stop";
        break;
      }
      const piece = decoder.push(token);
      text += piece;
      if (piece) yield piece;
    }
    if (finishReason !== "stop") finishReason = "length";
    const rest = decoder.end();
    text += rest;
    if (rest) yield rest;
  } catch (error) {
    if (!signal?.aborted || error !== signal.reason) throw error;
    finishReason = "abort";
  } finally {
    const ended = performance.now();
    const seconds = { first: first ? (first - began) / 1000 : 0, rest: first ? (ended - first) / 1000 : 0 };
    finish({ text, tokens, finishReason, stats: await stats(session, before, promptTokens.length, tokens.length, seconds) });
  }
}

async function pickModel({ model, onProgress, signal, onWarning }: GenerateOptions): Promise<LoadedModel> {
  if (model === undefined) return await defaultModel();
  return typeof model === "string" ? await load(model, { onProgress, signal, onWarning }) : model;
}

async function stats(
  session: Session,
  before: Attended | undefined,
  promptTokens: number,
  generatedTokens: number,
  seconds: { first: number; rest: number },
): Promise<GenerateStats> {
  const read = attendedRows(session, before ?? await session.attended(), await session.attended());
  return {
    promptTokens,
    generatedTokens,
    secondsToFirstToken: seconds.first,
    tokensPerSecond: seconds.rest > 0 ? (generatedTokens - 1) / seconds.rest : 0,
    budget: session.budget,
    attendedRows: read,
    bytesPerStep: Math.round(read.total * bytesPerRow(session) + session.selectBytes()),
    fullBytesPerStep: session.length() * bytesPerRow(session),
  };
}
