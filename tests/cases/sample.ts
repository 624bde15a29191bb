/** Cases of what lies between logits and the next token. */
import { OPTIONS, places } from "../reference/sample_ops.ts";
import type { Plain } from "../reference/plain.ts";
import { type Args, type Case, cases, exact, naive, twice } from "./case.ts";
import { activeSlots, NOWHERE, tensor, unwritten } from "./inputs.ts";
import type { Random } from "./random.ts";

interface Rows {
  first?: number;
  count: number;
  beyond?: number;
  inactive?: number[];
  vocab: number;
  /** The second row asks for nothing. */
  notSecond?: true;
}

const all = ({ first = 0, count, beyond = 0 }: Rows) => first + count + beyond;
/** Whether a row takes part: what the others hold is NaN. */
const takes = ({ first = 0, count, inactive = [] }: Rows, i: number) => i >= first && i < first + count && !inactive.includes(i);
const activeOf = (row: Rows) => row.inactive ? activeSlots(all(row), row.inactive) : null;

type Chosen = Partial<Record<keyof typeof places, number>>;

function optionsOf(row: Rows, chosen: Chosen): Plain {
  const whole = { temperature: 0, topP: 1, repetition: 1, ...chosen } as Record<string, number>;
  const names = Object.keys(places) as (keyof typeof places)[];
  const unasked = (i: number, name: string) => row.notSecond && i === 1 && (name === "adjusts" || name === "likeliest");
  const numberOf = (i: number, name: string) => unasked(i, name) ? 0 : whole[name] ?? 0;
  return tensor("f32", [all(row), OPTIONS], (i, place) => takes(row, i) && place < names.length ? numberOf(i, names[place]) : NaN);
}

interface Tally {
  slots: number;
  inactive?: number[];
  vocab: number;
  outside?: true;
}

function tally({ slots, inactive = [], vocab, outside }: Tally, random: Random): Args {
  return {
    counts: tensor("i32", [slots, vocab], () => random.below(4)),
    token: tensor(
      "i32",
      [slots],
      (s) => inactive.includes(s) ? NOWHERE : outside && s > 0 ? [NOWHERE, -1, vocab][s % 3] : random.below(vocab),
    ),
    active: activeSlots(slots, inactive),
  };
}

interface Penalize extends Rows, Chosen {
  /** Ids that may not be chosen. */
  forbidden?: true;
}

function penalize(row: Penalize, random: Random): Args {
  const planes = [all(row), row.vocab];
  return {
    adjusted: unwritten("f32", planes),
    logits: tensor("f32", planes, (i) => takes(row, i) ? 4 * random.normal() : NaN),
    counts: tensor("i32", planes, () => random.below(3) ? 0 : random.below(7)),
    bias: tensor("f32", planes, (i) => !takes(row, i) ? NaN : row.forbidden && random.below(5) === 0 ? -Infinity : random.below(2)),
    active: activeOf(row),
    options: optionsOf(row, { adjusts: 1, ...row }),
    first: row.first ?? 0,
    count: row.count,
  };
}

interface Sample extends Rows, Chosen {
  inputs?: "ties" | "all equal" | "NaN" | "all NaN" | "-inf" | "+inf" | "huge" | "one far above";
}

function sample(row: Sample, random: Random): Args {
  const { inputs, vocab } = row;
  const logit: Record<NonNullable<Sample["inputs"]>, (id: number) => number> = {
    ties: () => random.below(5),
    "all equal": () => 0.25,
    NaN: () => random.below(3) ? NaN : random.normal(),
    "all NaN": () => NaN,
    "-inf": () => random.below(3) ? -Infinity : random.normal(),
    "+inf": (id) => id === 5 ? Infinity : random.normal(),
    huge: () => 1e30 * random.normal(),
    "one far above": (id) => id === vocab - 1 ? 90 : random.normal(),
  };
  const make = inputs ? logit[inputs] : () => 3 * random.normal();
  const planes = [all(row), vocab];
  const logits = tensor("f32", planes, (i, id) => takes(row, i) ? make(id) : NaN);
  return {
    token: unwritten("i32", [all(row)]),
    logprob: unwritten("f32", [all(row)]),
    logits,
    adjusted: tensor("f32", planes, (i) => row.adjusts && takes(row, i) ? 3 * random.normal() : NaN),
    active: activeOf(row),
    position: tensor("i32", [all(row)], (i) => takes(row, i) ? random.below(1 << 20) : NOWHERE),
    options: optionsOf(row, { seedHigh: random.below(1 << 16), seedLow: random.below(1 << 16), ...row }),
    first: row.first ?? 0,
    count: row.count,
  };
}

interface Likeliest extends Sample {
  most: number;
}

function likeliest(row: Likeliest, random: Random): Args {
  const { logits, active, options, first, count } = sample(row, random);
  const planes = [all(row), row.most];
  return { tokens: unwritten("i32", planes), logprobs: unwritten("f32", planes), logits, active, options, first, count };
}

const draws: Chosen[] = [
  { temperature: 0 },
  { temperature: 1 },
  { temperature: 0.7, topK: 1 },
  { temperature: 1.3, topK: 40 },
  { temperature: 0.8, topP: 0.9 },
  { temperature: 1, topP: 0.001 },
  { temperature: 1, minP: 0.1 },
  { temperature: 0.9, topK: 50, topP: 0.95, minP: 0.02 },
  { temperature: 1e-30 },
  { temperature: 100 },
];

export const sampleCases: readonly Case[] = [
  ...cases<Tally>("tally", exact, tally, [
    { slots: 1, vocab: 300 },
    { slots: 3, inactive: [1], vocab: 33 },
    { slots: 4, vocab: 33, outside: true },
  ]),
  ...cases<Penalize>("penalize", twice(naive("f32")), penalize, [
    { count: 1, vocab: 301, repetition: 1.3 },
    { count: 2, vocab: 33, frequency: 0.5, presence: 0.25 },
    { count: 3, inactive: [1], vocab: 77, repetition: 1.1, frequency: -0.5, presence: 1.5 },
    { first: 2, count: 1, beyond: 1, vocab: 31, forbidden: true },
    { count: 3, vocab: 31, repetition: 2, notSecond: true },
  ]),
  ...cases<Sample>("sample", twice(naive("f32")), sample, [
    ...draws.flatMap((chosen) => [{ count: 7, vocab: 301, ...chosen }, { count: 6, vocab: 77, inputs: "ties" as const, ...chosen }]),
    { count: 2, vocab: 2048, temperature: 1 },
    { count: 2, vocab: 50003, temperature: 1.5, topP: 0.97 },
    { count: 1, vocab: 1, temperature: 1, topP: 0.5 },
    { count: 3, inactive: [1], vocab: 301, temperature: 1 },
    { first: 2, count: 2, beyond: 1, vocab: 33, temperature: 1, topK: 5 },
    { count: 4, vocab: 301, temperature: 1, adjusts: 1 },
    { count: 4, vocab: 77, temperature: 1, topK: 1000 },
    ...(["all equal", "NaN", "all NaN", "-inf", "+inf", "huge", "one far above"] as const).flatMap((inputs) => [
      { count: 4, vocab: 77, temperature: 1, inputs },
      { count: 4, vocab: 77, temperature: 1, topK: 9, topP: 0.6, inputs },
    ]),
  ]),
  ...cases<Likeliest>("likeliest", twice(naive("f32")), likeliest, [
    { count: 2, vocab: 301, most: 20, likeliest: 20 },
    { count: 2, vocab: 301, most: 20, likeliest: 3 },
    { count: 2, vocab: 301, most: 20, likeliest: 7, notSecond: true },
    { count: 4, vocab: 9, most: 20, likeliest: 12, inputs: "NaN" },
    { count: 4, vocab: 77, most: 8, likeliest: 8, inputs: "ties" },
    { count: 1, vocab: 7, most: 4, likeliest: 4, inputs: "all NaN" },
    { first: 1, count: 3, beyond: 1, inactive: [2], vocab: 50, most: 64, likeliest: 64 },
  ]),
];
