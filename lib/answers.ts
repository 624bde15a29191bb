/** Prompts to answers over the slots of a session: a slot that has finished takes the next prompt. */
import { type Answered, type Job, resultOf } from "./answer_stats.ts";
import { type FinishReason, type GenerateResult, StopText } from "./generation.ts";
import { handover } from "./handover.ts";
import { flagIn, numberIn, shown } from "./options.ts";
import { checkSampling, type Sampling, samplingOptions } from "./sampling.ts";
import type { DecodedToken, DecodeOptions, PrefillOptions, Session } from "./session.ts";
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
  /** Let the device read each token while it is on its way here, as `Session.decode` does; on a GPU unless said. */
  ahead?: boolean;
  /** "ops": `stats` has the time of each op, too. On a GPU steps then wait for each op. */
  stats?: "ops";
  /** Ends the work early. */
  signal?: AbortSignal;
  /** Is told how far it is. */
  onProgress?: OnProgress;
}

export const answerOptions: readonly string[] = [
  ...samplingOptions,
  "maxTokens",
  "stop",
  "onLogits",
  "ahead",
  "stats",
  "signal",
  "onProgress",
];

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
interface Running extends Answered {
  readonly decoder: TextDecoder;
  readonly stop: StopText;
}

/** Refuses what makes no sense. Errors: TypeError, RangeError. */
export function checkAnswer(action: string, options: AnswerOptions, vocab?: number): Rules {
  const { maxTokens = 256, stop = [], signal, onLogits, ahead, stats } = options;
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
  flagIn(action, "ahead", ahead);
  if (stats !== undefined && stats !== "ops") throw new RangeError(`Cannot ${action}: stats is ${shown(stats)}, want "ops"`);
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
 * whatever reason. While one slot reads its prompt, the others go on between its blocks. What a slot holds already of a prompt is not read
 * again. `onRead`: a prompt has been read.
 */
export async function* answers(
  session: Session,
  jobs: readonly Job[],
  options: AnswerOptions & Pick<PrefillOptions, "query"> & { onRead?: () => void },
  finish: (index: number, result: GenerateResult) => void,
): AsyncGenerator<BatchPiece, void, undefined> {
  const { signal, onLogits, ahead, onProgress, query, onRead } = options;
  const rules = checkAnswer("generate", options, session.model.shape.vocab);
  const waiting = [...jobs];
  const running: Running[] = [];
  let reading: Running | undefined;
  const end = async (one: Running, reason: FinishReason) => {
    if (running.includes(one)) running.splice(running.indexOf(one), 1);
    finish(one.job.index, await resultOf(session, one, reason, options.stats));
  };
  let decoding: AsyncGenerator<DecodedToken, void, undefined> | undefined; // of all that run, until one has ended
  const leave = async () => {
    await decoding?.return();
    decoding = undefined;
  };
  const decode = (most: number) => {
    const sampling: Sampling[] = [];
    for (const { slot, job } of running) sampling[slot] = job.sampling;
    const maxTokens = Math.min(most, ...running.map(({ tokens }) => rules.maxTokens - tokens.length));
    return session.decode({ slots: running.map(({ slot }) => slot), maxTokens, stop: [], sampling, signal, onLogits, ahead });
  };
  const step = async (most = Infinity): Promise<BatchPiece[]> => {
    decoding ??= decode(most);
    const pieces: BatchPiece[] = [];
    const ended: { one: Running; reason: FinishReason }[] = [];
    for (const _ of running) {
      const { value: token } = await decoding.next();
      const one = running.find(({ slot }) => slot === token!.slot)!;
      const { text, reason } = take(session, one, token!, rules);
      one.text += text;
      if (text !== "") pieces.push({ index: one.job.index, text });
      if (reason) ended.push({ one, reason });
    }
    if (ended.length > 0 || most === 1) await leave();
    for (const { one, reason } of ended) await end(one, reason);
    return pieces;
  };
  const left = new AbortController();
  const read = async (one: Running, between?: () => Promise<void>) => {
    const either = signal ? AbortSignal.any([signal, left.signal]) : left.signal;
    one.read = await session.prefill(one.job.tokens, { slot: one.slot, signal: either, onProgress, query, reuse: true, between });
    [one.before, one.timesBefore] = [await session.attended(one.slot), await session.times()];
    onRead?.();
  };
  session.clock(options.stats === "ops" || session.model.device.kind === "cpu");
  try {
    while (waiting.length > 0 || running.length > 0) {
      if (waiting.length > 0 && running.length < session.slots) await leave();
      while (waiting.length > 0 && running.length < session.slots) {
        const one = reading = begin(session, waiting.shift()!, freeSlot(session, running), rules);
        const between = async (say: (pieces: BatchPiece[]) => Promise<void>) => {
          if (running.length > 0) await say(await step(1));
        };
        yield* handover<BatchPiece>((say) => read(one, running.length > 0 ? () => between(say) : undefined), () => left.abort());
        running.push(one);
        reading = undefined;
      }
      yield* await step();
    }
  } catch (error) {
    if (!signal?.aborted || error !== signal.reason) throw error;
  } finally {
    await leave();
    for (const one of reading ? [...running, reading] : [...running]) await end(one, "abort");
    for (const job of waiting) finish(job.index, await resultOf(session, begin(session, job, 0, rules), "abort", options.stats));
    session.clock(false);
  }
}

function freeSlot(session: Session, running: readonly Running[]): number {
  return Array.from({ length: session.slots }, (_, s) => s).find((s) => running.every(({ slot }) => slot !== s))!;
}

function begin(session: Session, job: Job, slot: number, { stopTexts }: Rules): Running {
  const decoder = session.model.tokenizer.decoder();
  const start = { tokens: [], logprobs: [], read: 0, before: undefined, timesBefore: undefined, first: 0, text: "" };
  return { job, slot, decoder, stop: new StopText(stopTexts), began: performance.now(), ...start };
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
  if (one.tokens.length < rules.maxTokens && one.job.tokens.length + one.tokens.length <= session.capacity) return { text };
  const last = text + rest(one);
  return { text: last, reason: one.stop.isStopped ? "stop" : "length" };
}

/** What still waited to become text. */
function rest(one: Running): string {
  return one.stop.push(one.decoder.end()) + (one.stop.isStopped ? "" : one.stop.end());
}
