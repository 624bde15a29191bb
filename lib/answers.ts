/** Prompts to answers over the slots of a session: a slot that has finished takes the next prompt. */
import { type FinishReason, type GenerateResult, type GenerateStats, StopText, type TokenLogprob } from "./generation.ts";
import { attendedRows, bytesPerRow } from "./metrics/attended.ts";
import { numberIn, shown } from "./options.ts";
import { checkSampling, type Sampling, samplingOptions } from "./sampling.ts";
import type { Attended, DecodedToken, DecodeOptions, PrefillOptions, Session } from "./session.ts";
import type { TextDecoder } from "./tokenizer/tokenizer.ts";
import type { OnProgress } from "./types.ts";

/** How to answer: when to end, and how tokens are chosen: as the model's generation_config.json says where it does, unless said here. */
export interface AnswerOptions extends Sampling {
  /** Most tokens to generate; 256 unless said. */
  maxTokens?: number;
  /** Texts and tokens at which to end beside the model's own end tokens; a text that ends the answer is left out of it. */
  stop?: string | number | readonly (string | number)[];
  /** Sees the logits before each choice and may change them. */
  onLogits?: DecodeOptions["onLogits"];
  /** Ends the work early. */
  signal?: AbortSignal;
  /** Is told how far it is. */
  onProgress?: OnProgress;
}

export const answerOptions: readonly string[] = [...samplingOptions, "maxTokens", "stop", "onLogits", "signal", "onProgress"];

/** A prompt that waits for a slot. */
export interface Job {
  readonly index: number;
  /** What is to be read. */
  readonly tokens: readonly number[];
  readonly sampling: Sampling;
}

/** A piece of the text of answer `index`. */
export interface BatchPiece {
  /** Which prompt of the array it answers. */
  readonly index: number;
  /** The text. */
  readonly text: string;
}

/** What all answers of a call have in common. */
interface Rules {
  readonly maxTokens: number;
  readonly stopTokens: readonly number[];
  readonly stopTexts: readonly string[];
}

/** One slot at work. */
interface Running {
  readonly job: Job;
  readonly slot: number;
  readonly decoder: TextDecoder;
  readonly stop: StopText;
  readonly tokens: number[];
  readonly logprobs: TokenLogprob[];
  readonly began: number;
  readonly held: number;
  before: Attended | undefined;
  first: number;
  text: string;
}

/** Refuses what makes no sense. Errors: TypeError, RangeError. */
export function checkAnswer(action: string, options: AnswerOptions, vocab?: number): Rules {
  const { maxTokens = 256, stop = [], signal, onLogits } = options;
  numberIn(action, "maxTokens", maxTokens, 1, Infinity, true);
  const stops: readonly unknown[] = Array.isArray(stop) ? stop : [stop];
  for (const one of stops) {
    if (typeof one === "number") numberIn(action, "a token of stop", one, 0, (vocab ?? 2 ** 24) - 1, true);
    else if (typeof one !== "string") throw new TypeError(`Cannot ${action}: stop has ${shown(one)}, want texts and token ids`);
    else if (one === "") throw new RangeError(`Cannot ${action}: stop has an empty text, want at least one character`);
  }
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    throw new TypeError(`Cannot ${action}: signal is ${shown(signal)}, want an AbortSignal`);
  }
  if (onLogits !== undefined && typeof onLogits !== "function") {
    throw new TypeError(`Cannot ${action}: onLogits is ${shown(onLogits)}, want a function`);
  }
  checkSampling(action, samplingOf(options), vocab);
  return {
    maxTokens,
    stopTokens: stops.filter((one) => typeof one === "number"),
    stopTexts: stops.filter((one) => typeof one === "string").map((text) => text.toWellFormed()),
  };
}

/** The options that say how tokens are chosen. */
export function samplingOf(options: Sampling): Sampling {
  return Object.fromEntries(samplingOptions.filter((name) => options[name] !== undefined).map((name) => [name, options[name]]));
}

/**
 * Answers jobs, some at a time; yields pieces of text, and tells each result when it is known: at the latest when the loop ends, for
 * whatever reason. `keeps`: slots go on from what they hold; else each job begins with an empty one. `onRead`: a prompt has been read.
 */
export async function* answers(
  session: Session,
  jobs: readonly Job[],
  options: AnswerOptions & Pick<PrefillOptions, "query"> & { keeps?: boolean; onRead?: () => void },
  finish: (index: number, result: GenerateResult) => void,
): AsyncGenerator<BatchPiece, void, undefined> {
  const { signal, onLogits, onProgress, query, keeps = false, onRead } = options;
  const rules = checkAnswer("generate", options, session.model.shape.vocab);
  const waiting = [...jobs];
  const running: Running[] = [];
  const end = async (one: Running, reason: FinishReason) => {
    running.splice(running.indexOf(one), 1);
    finish(one.job.index, await resultOf(session, one, reason));
  };
  try {
    while (waiting.length > 0 || running.length > 0) {
      while (waiting.length > 0 && running.length < session.slots) {
        const slot = Array.from({ length: session.slots }, (_, s) => s).find((s) => running.every((one) => one.slot !== s))!;
        if (!keeps) session.reset(slot);
        const one = begin(session, waiting.shift()!, slot, rules);
        running.push(one);
        await session.prefill(one.job.tokens, { slot, signal, onProgress, query });
        one.before = await session.attended(slot);
        onRead?.();
      }
      const bySlot: Sampling[] = [];
      for (const { slot, job } of running) bySlot[slot] = job.sampling;
      const step = { slots: running.map(({ slot }) => slot), maxTokens: 1, stop: [], sampling: bySlot, signal, onLogits };
      const chosen: DecodedToken[] = [];
      for await (const token of session.decode(step)) chosen.push(token);
      for (const token of chosen) {
        const one = running.find(({ slot }) => slot === token.slot)!;
        const { text, reason } = take(session, one, token, rules);
        one.text += text;
        if (text !== "") yield { index: one.job.index, text };
        if (reason) await end(one, reason);
      }
    }
  } catch (error) {
    if (!signal?.aborted || error !== signal.reason) throw error;
  } finally {
    for (const one of [...running]) await end(one, "abort");
    for (const job of waiting) finish(job.index, await resultOf(session, begin(session, job, 0, rules), "abort"));
  }
}

function begin(session: Session, job: Job, slot: number, { stopTexts }: Rules): Running {
  const decoder = session.model.tokenizer.decoder();
  const held = session.length(slot);
  const start = { tokens: [], logprobs: [], before: undefined, first: 0, text: "" };
  return { job, slot, decoder, stop: new StopText(stopTexts), began: performance.now(), held, ...start };
}

/** What a token adds to the text, and whether the answer ends with it. */
function take(session: Session, one: Running, chosen: DecodedToken, rules: Rules): { text: string; reason?: FinishReason } {
  const { token, logprob, likeliest } = chosen;
  if (one.tokens.length === 0) one.first = performance.now();
  one.tokens.push(token);
  if (likeliest && one.job.sampling.logprobs) one.logprobs.push({ token, logprob, likeliest });
  if (session.model.shape.eos.includes(token) || rules.stopTokens.includes(token)) return { text: rest(one), reason: "stop" };
  const text = one.stop.push(one.decoder.push(token));
  if (one.stop.isStopped) return { text, reason: "stop" };
  if (one.tokens.length < rules.maxTokens && session.length(one.slot) < session.capacity) return { text };
  const last = text + rest(one);
  return { text: last, reason: one.stop.isStopped ? "stop" : "length" };
}

/** What still waited to become text. */
function rest(one: Running): string {
  return one.stop.push(one.decoder.end()) + (one.stop.isStopped ? "" : one.stop.end());
}

async function resultOf(session: Session, one: Running, finishReason: FinishReason): Promise<GenerateResult> {
  const { text, tokens, logprobs } = one;
  const stats = await statsOf(session, one);
  return { text, tokens, finishReason, stats, ...(one.job.sampling.logprobs ? { logprobs } : {}) };
}

async function statsOf(session: Session, { slot, job, tokens, began, first, held, before }: Running): Promise<GenerateStats> {
  const ended = performance.now();
  const after = await session.attended(slot);
  const read = attendedRows(session, before ?? after, after);
  const seconds = first ? (ended - first) / 1000 : 0;
  return {
    promptTokens: held + job.tokens.length,
    readTokens: job.tokens.length,
    generatedTokens: tokens.length,
    secondsToFirstToken: first ? (first - began) / 1000 : 0,
    tokensPerSecond: seconds > 0 ? (tokens.length - 1) / seconds : 0,
    budget: session.budget,
    attendedRows: read,
    bytesPerStep: Math.round(read.total * bytesPerRow(session) + session.selectBytes(slot)),
    fullBytesPerStep: session.length(slot) * bytesPerRow(session),
    heldRows: mean(session.rows(slot)),
  };
}

function mean(numbers: readonly number[]): number {
  return numbers.reduce((sum, number) => sum + number, 0) / numbers.length;
}
