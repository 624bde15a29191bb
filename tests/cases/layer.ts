/** Cases of the decoder's ops. */
import { type Model, type Plain, range, STEP } from "../reference/plain.ts";
import { type Args, type Case, cases, exact, naive, twice } from "./case.ts";
import { activeSlots, type KvDType, kvRows, layer, type LayerOptions, NOWHERE, tensor, unwritten, work } from "./inputs.ts";
import type { Random } from "./random.ts";
import { matrix, vector, type WeightType } from "./weights.ts";

interface Rotations {
  positions: number[];
  ropeDim: number;
  factor?: number;
  /** Rows of the tensors beyond those that are made. */
  beyond?: number;
}

function rotations({ positions, ropeDim, factor = 1, beyond = 0 }: Rotations): Args {
  const n = positions.length + beyond;
  return {
    rotations: unwritten("f32", [n, 2, ropeDim / 2]),
    position: tensor("i32", [n], (i) => positions[i] ?? NOWHERE),
    frequencies: tensor("f32", [ropeDim / 2], (i) => 50000 ** (-2 * i / ropeDim)),
    factor,
    count: positions.length,
  };
}

/** Rows of a step or a chunk: `count` of them in tensors that hold `beyond` more; of a step, some inactive. */
interface OverRows {
  count: number;
  beyond?: number;
  inactive?: number[];
}

function active({ count, beyond = 0, inactive }: OverRows): Plain | null {
  return inactive ? activeSlots(count + beyond, inactive) : null;
}

/** An input of so many rows; NaN where no row takes part. */
function input({ count, beyond = 0, inactive = [] }: OverRows, shape: number[], number: () => number, first = 0): Plain {
  const takes = (i: number) => i >= first && i < first + count && !inactive.includes(i);
  return tensor("f32", [first + count + beyond, ...shape], (i) => takes(i) ? number() : NaN);
}

interface Ends {
  hidden: number;
  vocab: number;
  weights: WeightType;
  tied?: false;
}

function model({ hidden, vocab, weights, tied }: Ends, random: Random): Model {
  return {
    embed: matrix(weights, vocab, hidden, random),
    outputNorm: vector(hidden, random, 1),
    output: tied === false ? matrix(weights, vocab, hidden, random) : null,
    eps: Math.fround(1e-5),
  };
}

interface Embed extends OverRows, Ends {
  inputs?: "tokens outside";
}

function embed(row: Embed, random: Random): Args {
  const { count, beyond = 0, hidden, vocab, inputs } = row;
  const outside = [-1, vocab, NOWHERE];
  return {
    x: unwritten("f32", [count + beyond, hidden]),
    model: model(row, random),
    token: tensor("i32", [count + beyond], (i) => i >= count ? NOWHERE : inputs && i % 2 ? outside[i % 3] : random.below(vocab)),
    active: active(row),
    count,
  };
}

interface Head extends OverRows, Ends {
  first?: number;
}

function head(row: Head, random: Random): Args {
  const { first = 0, count, beyond = 0, hidden, vocab } = row;
  return {
    logits: unwritten("f32", [first + count + beyond, vocab]),
    x: input(row, [hidden], random.normal, first),
    model: model(row, random),
    active: active({ ...row, count: first + count }),
    work: work(count * hidden),
    first,
    count,
  };
}

interface Greedy extends OverRows {
  first?: number;
  vocab: number;
  inputs?: "ties" | "all equal" | "NaN" | "all NaN" | "-inf" | "huge";
}

function greedy(row: Greedy, random: Random): Args {
  const { first = 0, count, beyond = 0, vocab, inputs } = row;
  const logit: Record<NonNullable<Greedy["inputs"]>, () => number> = {
    ties: () => random.below(9),
    "all equal": () => 0.25,
    NaN: () => random.below(3) ? NaN : random.normal(),
    "all NaN": () => NaN,
    "-inf": () => random.below(3) ? -Infinity : random.normal(),
    huge: () => 1e30 * random.normal(),
  };
  return {
    token: unwritten("i32", [first + count + beyond]),
    logprob: unwritten("f32", [first + count + beyond]),
    logits: input(row, [vocab], inputs ? logit[inputs] : () => 4 * random.normal(), first),
    active: active({ ...row, count: first + count }),
    first,
    count,
  };
}

/** A chunk of one slot, or a step of all of them (`slot` STEP). */
interface AttnIn extends LayerOptions {
  slot: number;
  count: number;
  beyond?: number;
  /** Rows held before, per slot. */
  lengths: number[];
  inactive?: number[];
  dtype?: KvDType;
}

function attnIn(row: AttnIn, random: Random): Args {
  const { slot, count, beyond = 0, lengths, inactive = [], hidden, kvHeads, group, headDim } = row;
  const takes = (i: number) => i < count && !(slot === STEP && inactive.includes(i));
  const ropeDim = row.ropeDim ?? headDim;
  const angles = range(count + beyond).map(() => range(ropeDim / 2).map(() => 2 * Math.PI * random.uniform()));
  return {
    q: unwritten("f32", [count + beyond, kvHeads * group, headDim]),
    rows: kvRows({ ...row, capacity: Math.max(...lengths) + count + 1 }, random),
    x: tensor("f32", [count + beyond, hidden], (i) => takes(i) ? random.normal() : NaN),
    layer: layer(row, random),
    rotations: tensor(
      "f32",
      [count + beyond, 2, ropeDim / 2],
      (i, part, c) => !takes(i) ? NaN : part === 0 ? Math.cos(angles[i][c]) : Math.sin(angles[i][c]),
    ),
    position: tensor("i32", [count + beyond], (i) => takes(i) ? 1000 + i : NOWHERE),
    work: work(count * (hidden + 2 * kvHeads * headDim)),
    slot,
    count,
  };
}

function queries(row: AttnIn, random: Random): Args {
  const { q, x, layer, rotations } = attnIn({ ...row, slot: STEP }, random) as Record<string, Args[string]>;
  return { q, x, layer, active: activeSlots(row.count, row.inactive), rotations, work: work(row.count * row.hidden), count: row.count };
}

interface AttnOut extends LayerOptions, OverRows {
  intermediate: number;
}

function attnOut(row: AttnOut, random: Random): Args {
  const { count, hidden, kvHeads, group, headDim, intermediate } = row;
  return {
    x: input(row, [hidden], random.normal),
    attended: input(row, [kvHeads * group, headDim], random.normal),
    layer: layer(row, random),
    active: active(row),
    work: work(count * (hidden + 2 * intermediate)),
    count,
  };
}

interface Advance {
  slots: number;
  inactive?: number[];
}

function advance({ slots, inactive }: Advance, random: Random): Args {
  return { position: tensor("i32", [slots], () => random.below(1000)), active: activeSlots(slots, inactive) };
}

/** The nano model's layer, and one that fits no vector: sizes of the cases below. */
const nano = { hidden: 192, kvHeads: 3, group: 2, headDim: 32 };
const odd = { hidden: 37, kvHeads: 1, group: 3, headDim: 10 };

/** Rows of x, and F16 weights, may be taken as BF16 where weights have 16 bits. */
const products = ({ weights = "f32" }: { weights?: WeightType }) => twice(naive(weights === "f32" ? "f32" : "bf16 weights"));

export const layerCases: Case[] = [
  ...cases("rotations", twice(naive("f32")), rotations, [
    { positions: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], ropeDim: 32 },
    { positions: [100000, 7, 1048575], ropeDim: 128, factor: 1.25 },
    { positions: [5], ropeDim: 2, beyond: 2 },
    { positions: [2047, 3], ropeDim: 20, beyond: 1 },
  ]),
  ...cases<Embed>("embed", exact, embed, [
    { count: 9, hidden: 192, vocab: 301, weights: "f32" },
    { count: 9, hidden: 192, vocab: 301, weights: "f16" },
    { count: 9, hidden: 192, vocab: 301, weights: "bf16" },
    { count: 1, hidden: 37, vocab: 33, weights: "bf16", beyond: 2 },
    { count: 7, hidden: 20, vocab: 3, weights: "f32", inputs: "tokens outside" },
    { count: 3, inactive: [1], hidden: 64, vocab: 70, weights: "bf16" },
  ]),
  ...cases<Head>("head", products, head, [
    { count: 1, hidden: 192, vocab: 512, weights: "f32" },
    { count: 1, hidden: 192, vocab: 512, weights: "f16" },
    { count: 1, hidden: 192, vocab: 512, weights: "bf16" },
    { count: 3, inactive: [1], hidden: 192, vocab: 301, weights: "bf16", tied: false },
    { first: 2, count: 1, beyond: 1, hidden: 37, vocab: 33, weights: "bf16" },
    { first: 1, count: 5, inactive: [0, 3], hidden: 130, vocab: 65, weights: "f32" },
    { count: 40, hidden: 257, vocab: 31, weights: "f16", tied: false },
  ]),
  ...cases<Greedy>("greedy", twice(naive("f32")), greedy, [
    { count: 1, vocab: 2048 },
    { count: 3, inactive: [1], vocab: 301 },
    { first: 2, count: 2, beyond: 1, vocab: 33 },
    { count: 1, vocab: 1 },
    { count: 4, vocab: 301, inputs: "ties" },
    { count: 2, vocab: 77, inputs: "all equal" },
    { count: 4, vocab: 77, inputs: "NaN" },
    { count: 2, vocab: 77, inputs: "all NaN" },
    { count: 4, vocab: 77, inputs: "-inf" },
    { count: 4, vocab: 77, inputs: "huge" },
  ]),
  ...cases<AttnIn>("attnIn", products, attnIn, [
    { slot: 0, count: 9, lengths: [0], ...nano, weights: "f32" },
    { slot: 0, count: 9, lengths: [0], ...nano, weights: "f16", dtype: "f16" },
    { slot: 0, count: 9, lengths: [5], ...nano, weights: "bf16", dtype: "bf16" },
    { slot: 0, count: 9, lengths: [5], ...nano, weights: "bf16", dtype: "q8" },
    { slot: 0, count: 130, lengths: [0], hidden: 140, kvHeads: 1, group: 2, headDim: 20, weights: "bf16" },
    { slot: 1, count: 7, beyond: 2, lengths: [3, 11, 0], ...nano, weights: "bf16", dtype: "f16" },
    { slot: STEP, count: 1, lengths: [20], ...nano, weights: "bf16", dtype: "f16" },
    { slot: STEP, count: 3, lengths: [20, 0, 7], ...nano, weights: "bf16" },
    { slot: STEP, count: 3, lengths: [20, 0, 7], inactive: [1], ...nano, weights: "f32", dtype: "bf16" },
    { slot: 0, count: 5, lengths: [2], ...odd, weights: "bf16" },
    { slot: 0, count: 5, lengths: [2], ...odd, weights: "f32", dtype: "q8" },
    { slot: 0, count: 5, lengths: [2], hidden: 64, kvHeads: 1, group: 8, headDim: 64, weights: "bf16", ropeDim: 20 },
    { slot: 0, count: 5, lengths: [2], hidden: 64, kvHeads: 2, group: 1, headDim: 32, weights: "bf16", biases: true },
    { slot: 0, count: 5, lengths: [2], hidden: 64, kvHeads: 2, group: 2, headDim: 32, weights: "f16", norms: true },
    {
      slot: STEP,
      count: 2,
      lengths: [2, 9],
      hidden: 64,
      kvHeads: 2,
      group: 2,
      headDim: 20,
      weights: "f32",
      norms: true,
      biases: true,
      ropeDim: 10,
    },
    { slot: 0, count: 5, lengths: [2], ...nano, weights: "f32", rotated: true },
    { slot: STEP, count: 1, lengths: [2], ...nano, weights: "bf16", rotated: true },
    { slot: STEP, count: 37, lengths: range(37), inactive: [0, 20], ...nano, weights: "bf16", dtype: "bf16" },
  ]),
  ...cases<AttnIn>("queries", products, queries, [
    { slot: STEP, count: 1, lengths: [0], ...nano, weights: "bf16" },
    { slot: STEP, count: 3, lengths: [0, 0, 0], inactive: [1], ...nano, weights: "f32" },
    { slot: STEP, count: 5, lengths: [0, 0, 0, 0, 0], ...odd, weights: "bf16", biases: true },
    { slot: STEP, count: 3, lengths: [0, 0, 0], hidden: 64, kvHeads: 2, group: 2, headDim: 32, weights: "f16", norms: true, ropeDim: 20 },
  ]),
  ...cases<AttnOut>("attnOut", products, attnOut, [
    { count: 9, ...nano, intermediate: 144, weights: "f32" },
    { count: 9, ...nano, intermediate: 144, weights: "f16" },
    { count: 9, ...nano, intermediate: 144, weights: "bf16" },
    { count: 130, ...odd, intermediate: 130, weights: "bf16", beyond: 1 },
    { count: 1, ...nano, intermediate: 512, weights: "bf16" },
    { count: 3, inactive: [1], ...nano, intermediate: 144, weights: "bf16" },
    { count: 3, inactive: [0, 1, 2], ...nano, intermediate: 16, weights: "bf16" },
    { count: 5, ...odd, intermediate: 33, weights: "bf16" },
    { count: 5, ...odd, intermediate: 33, weights: "f32", biases: true },
    { count: 2, hidden: 300, kvHeads: 2, group: 8, headDim: 16, intermediate: 100, weights: "f16" },
    { count: 3, hidden: 33, kvHeads: 2, group: 4, headDim: 34, intermediate: 66, weights: "bf16" }, // heads are wider than work
    { count: 40, inactive: [1], hidden: 33, kvHeads: 2, group: 4, headDim: 34, intermediate: 66, weights: "f16" },
    { count: 11, inactive: [3], ...nano, intermediate: 1120, weights: "f16" },
    { count: 41, inactive: [1, 17, 18], ...nano, intermediate: 1120, weights: "bf16" },
  ]),
  ...cases("advance", exact, advance, [{ slots: 1 }, { slots: 3, inactive: [1] }]),
];
