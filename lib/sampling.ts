/** How the next token is chosen: the options, and the tensors in which they reach the device. */
import type { Arena } from "./device.ts";
import type { Kernels } from "./kernels.ts";
import { knownOptions, numberIn, shown } from "./options.ts";
import type { Tensor } from "./tensor.ts";

/** How the next token is chosen. */
export interface Sampling {
  /** 0 (default): the likeliest token. Else logits are divided by it before one is drawn. */
  temperature?: number;
  /** Only the so many likeliest tokens; 0 (default): all. */
  topK?: number;
  /** Only the likeliest tokens that together have this probability (after topK); 1 (default): all. */
  topP?: number;
  /** Only tokens at least this many times as likely as the likeliest (after topP); 0 (default): all. */
  minP?: number;
  /** Divides positive logits of tokens that the text already has, multiplies negative ones; 1 (default): none. */
  repetitionPenalty?: number;
  /** Taken from a token's logit for each time it was generated; 0 (default): none. */
  frequencyPenalty?: number;
  /** Taken from a token's logit once it was generated; 0 (default): none. */
  presencePenalty?: number;
  /** Added to the logits of tokens, by id: `{ 42: -Infinity }` forbids token 42. */
  logitBias?: Readonly<Record<number, number>>;
  /** A whole number below 2^32: the same seed gives the same text, alone or in a batch. Another one each time unless said. */
  seed?: number;
  /** How many of the likeliest tokens to tell with each token, with their log-probabilities; 0 (default) to 20. */
  logprobs?: number;
}

export const samplingOptions: readonly (keyof Sampling)[] = [
  "temperature",
  "topK",
  "topP",
  "minP",
  "repetitionPenalty",
  "frequencyPenalty",
  "presencePenalty",
  "logitBias",
  "seed",
  "logprobs",
];

/** Most tokens that `logprobs` may ask for. */
export const MOST_LOGPROBS = 20;
const OPTIONS = 12; // RKV_SAMPLING

/** Refuses what makes no sense. Errors: TypeError for an unknown option or a wrong kind, RangeError for a number out of range. */
export function checkSampling(action: string, sampling: Sampling, vocab?: number): void {
  knownOptions(action, sampling, samplingOptions);
  const check = (name: keyof Sampling, least: number, most: number, whole = false) => {
    if (sampling[name] !== undefined) numberIn(action, name, sampling[name], least, most, whole);
  };
  check("temperature", 0, 1000);
  check("topK", 0, 2 ** 24, true);
  check("topP", 0, 1);
  check("minP", 0, 1);
  check("repetitionPenalty", 0.01, 100);
  check("frequencyPenalty", -100, 100);
  check("presencePenalty", -100, 100);
  check("seed", 0, 2 ** 32 - 1, true);
  check("logprobs", 0, MOST_LOGPROBS, true);
  const { logitBias } = sampling;
  if (logitBias === undefined) return;
  if (typeof logitBias !== "object" || logitBias === null) {
    throw new TypeError(`Cannot ${action}: logitBias is ${shown(logitBias)}, want an object of token ids and numbers`);
  }
  for (const [id, bias] of Object.entries(logitBias)) {
    numberIn(action, "a token of logitBias", Number(id), 0, (vocab ?? 2 ** 24) - 1, true);
    if (bias !== -Infinity) numberIn(action, `logitBias of token ${id}`, bias, -1e6, 1e6);
  }
}

/** What a token was chosen from, when `logprobs` asked for it. */
export interface LikelyToken {
  /** Its id. */
  readonly token: number;
  /** Natural logarithm of its probability. */
  readonly logprob: number;
}

/** The tensors of the step that choosing reads and writes. */
export interface Choice {
  /** i32[slots], f32[slots]: what was chosen. */
  readonly token: Tensor;
  readonly logprob: Tensor;
  /** f32[slots, vocab]. */
  readonly logits: Tensor;
  /** i32[slots]: place in the text of the token that is chosen. */
  readonly position: Tensor;
}

/** What a slot holds. */
interface Text {
  readonly tokens: readonly number[];
  /** Where what was generated begins. */
  readonly answer: number;
}

/** Chooses the tokens of a session's slots. Options are rows of a tensor, so a recorded step goes on with new ones. */
export class Sampler {
  readonly #options: Tensor;
  readonly #adjusted: Tensor;
  readonly #counts: Tensor;
  readonly #bias: Tensor;
  readonly #tokens: Tensor;
  readonly #logprobs: Tensor;
  /** What was written last, by slot. */
  readonly #written: (string | undefined)[];
  readonly #biased: boolean[];
  /** How many tokens of a slot's text are counted on the device; -1: nothing is known. */
  readonly #counted: number[];

  constructor(arena: Arena, private readonly slots: number, private readonly vocab: number) {
    const planes = (dtype: "f32" | "i32") => {
      const tensor = arena.tensor(dtype, [slots, vocab]);
      tensor.commit(slots);
      return tensor;
    };
    this.#options = arena.tensor("f32", [slots, OPTIONS]);
    [this.#adjusted, this.#bias, this.#counts] = [planes("f32"), planes("f32"), planes("i32")];
    this.#tokens = arena.tensor("i32", [slots, MOST_LOGPROBS]);
    this.#logprobs = arena.tensor("f32", [slots, MOST_LOGPROBS]);
    this.#written = new Array(slots).fill(undefined);
    this.#biased = new Array(slots).fill(false);
    this.#counted = new Array(slots).fill(-1);
  }

  /** The text of a slot is not what was counted any more. */
  changed(slot: number): void {
    this.#counted[slot] = -1;
  }

  /**
   * Writes how slots choose, all alike or each by its number; `text` gives a slot's tokens and where its answer begins. Returns how many
   * of the likeliest tokens each slot wants told. Errors as `checkSampling`.
   */
  writeAll(sampling: Sampling | readonly Sampling[], slots: readonly number[], text: (slot: number) => Text): number[] {
    const of = (slot: number): Sampling => Array.isArray(sampling) ? sampling[slot] ?? {} : sampling as Sampling;
    for (const slot of slots) checkSampling("decode", of(slot), this.vocab);
    for (const slot of slots) this.#write(slot, { seed: of(slot).temperature ? anySeed() : 0, ...of(slot) }, text(slot));
    return Array.from({ length: this.slots }, (_, slot) => slots.includes(slot) ? of(slot).logprobs ?? 0 : 0);
  }

  /** Writes how a slot chooses; nothing where it has not changed. */
  #write(slot: number, sampling: Sampling, { tokens, answer }: Text): void {
    const { temperature = 0, topK = 0, topP = 1, minP = 0, repetitionPenalty = 1, frequencyPenalty = 0, presencePenalty = 0 } = sampling;
    const { logitBias = {}, seed = 0, logprobs = 0 } = sampling;
    const counts = repetitionPenalty !== 1 || frequencyPenalty !== 0 || presencePenalty !== 0;
    const biased = Object.keys(logitBias).length > 0;
    const numbers = [temperature, Math.min(topK, this.vocab), topP, minP, repetitionPenalty, frequencyPenalty, presencePenalty];
    const all = [...numbers, Math.floor(seed / 65536), seed % 65536, logprobs, counts || biased ? 1 : 0, 0];
    const written = JSON.stringify([all, Object.entries(logitBias).map(([id, bias]) => [id, String(bias)])]);
    if (this.#written[slot] !== written) {
      this.#options.write(Float32Array.from(all), slot * OPTIONS);
      if (biased || this.#biased[slot]) {
        const row = new Float32Array(this.vocab);
        for (const [id, bias] of Object.entries(logitBias)) row[Number(id)] = bias;
        this.#bias.write(row, slot * this.vocab);
      }
      this.#biased[slot] = biased;
      this.#written[slot] = written;
    }
    if (!counts || this.#counted[slot] === tokens.length) return;
    const row = new Int32Array(this.vocab);
    tokens.forEach((token, i) => row[token] = i < answer ? row[token] | 1 : row[token] + 2);
    this.#counts.write(row, slot * this.vocab);
    this.#counted[slot] = tokens.length;
  }

  /** Enqueues the counting of the tokens that a step feeds. */
  tally(k: Kernels, token: Tensor, active: Tensor): void {
    k.tally(this.#counts, token, active);
  }

  /** A step has fed one token of a slot. */
  fed(slot: number): void {
    if (this.#counted[slot] >= 0) this.#counted[slot]++;
  }

  /** Enqueues the choice for rows [first, first + count); in a step for active slots only. */
  choose(k: Kernels, { token, logprob, logits, position }: Choice, active: Tensor | null, first: number, count: number): void {
    k.penalize(this.#adjusted, logits, this.#counts, this.#bias, active, this.#options, first, count);
    k.sample(token, logprob, logits, this.#adjusted, active, position, this.#options, first, count);
    k.likeliest(this.#tokens, this.#logprobs, logits, active, this.#options, first, count);
  }

  /** The likeliest tokens of each slot, as many as were asked for. */
  async likeliest(asked: readonly number[]): Promise<LikelyToken[][]> {
    const [tokens, logprobs] = await Promise.all([this.#tokens.read(), this.#logprobs.read()]);
    return Array.from({ length: this.slots }, (_, slot) =>
      Array.from({ length: asked[slot] }, (_, k) => slot * MOST_LOGPROBS + k)
        .map((at) => ({ token: tokens[at], logprob: logprobs[at] })).filter(({ token }) => token >= 0));
  }
}

/** Lets a caller change the logits of slots: a read and a write each. `position`: of the token that is chosen from them. */
export async function process(
  logits: Tensor,
  slots: readonly number[],
  position: (slot: number) => number,
  onLogits: (row: Float32Array, place: { slot: number; position: number }) => void | Promise<void>,
): Promise<void> {
  const vocab = logits.shape[1];
  for (const slot of slots) {
    const row = await logits.read(slot * vocab, vocab) as Float32Array;
    await onLogits(row, { slot, position: position(slot) });
    logits.write(row, slot * vocab);
  }
}

/** A seed that nobody knew before. */
function anySeed(): number {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}
