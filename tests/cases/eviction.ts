/** Cases of giving rows back: attention mass, what is kept, how rows move. */
import { attend, attendChunk } from "../reference/attention_ops.ts";
import { type Plain, range, STEP } from "../reference/plain.ts";
import { type Args, type Case, cases, exact, naive, twice } from "./case.ts";
import { type KvDType, kvRows, layer, NOWHERE, tensor, unwritten, work } from "./inputs.ts";
import type { Random } from "./random.ts";

interface Mass {
  /** Rows held, per slot; a chunk is of slot 0. */
  lengths: number[];
  inactive?: number[];
  /** Queries of the chunk; none: a step. */
  count?: number;
  first?: number;
  kvHeads: number;
  group: number;
  headDim: number;
  dtype?: KvDType;
  perHead?: true;
  weighted?: true;
  window?: number;
  softCap?: number;
}

function attentionMass(row: Mass, random: Random): Args {
  const { lengths, count = lengths.length, first = 0, kvHeads, group, headDim, perHead, weighted, window, softCap } = row;
  const [heads, capacity, slots] = [kvHeads * group, Math.max(...lengths) + 9, lengths.length];
  const slot = row.count === undefined ? STEP : 0;
  const args = {
    mass: tensor("f32", [slots, perHead ? heads : kvHeads, capacity], () => random.uniform()),
    q: tensor("f32", [count, heads, headDim], random.normal),
    lse: unwritten("f32", [count, heads]),
    weights: weighted ? tensor("f32", [count], () => 1 + random.uniform()) : null,
    rows: kvRows({ ...row, capacity }, random),
    layer: layer({ hidden: 16, kvHeads, group, headDim, window, softCap }, random),
    slot,
    count,
    first,
  };
  const [attended, nowhere] = [unwritten("f32", args.q.shape), work(1)];
  const counters = { ...args.rows, attended: { ...args.rows.attended, data: args.rows.attended.data.slice() } };
  if (slot === STEP) attend(attended, args.lse, args.q, counters, args.layer, null, nowhere, 0);
  else attendChunk(attended, args.lse, args.q, args.rows, args.layer, slot, count);
  args.lse.data.forEach((x, i, lse) => lse[i] = Math.fround(x));
  return args;
}

interface Rates {
  lengths: number[];
  inactive?: number[];
  kvHeads: number;
  perHead?: number;
  slot?: number;
}

function massRates({ lengths, inactive, kvHeads, perHead = 1, slot = STEP }: Rates, random: Random): Args {
  const capacity = Math.max(...lengths) + 9;
  const shape = [lengths.length, kvHeads * perHead, capacity];
  return {
    rates: unwritten("f32", shape),
    mass: tensor("f32", shape, (s, _n, row) => row < lengths[s] ? random.uniform() * 9 : NaN),
    rows: kvRows({ lengths, inactive, kvHeads, headDim: 8, capacity }, random),
    slot,
  };
}

interface Pool {
  capacity: number;
  n: number;
  m: number;
  begin: number;
  end: number;
  kernel: number;
  mode: "mean" | "max" | "chunk";
}

function poolScores({ capacity, n, m, begin, end, kernel, mode }: Pool, random: Random): Args {
  return {
    pooled: unwritten("f32", [2, m, capacity]),
    scores: tensor("f32", [2, n, capacity], (s, _n, row) => s === 1 && row >= begin && row < end ? random.uniform() : NaN),
    slot: 1,
    begin,
    end,
    kernel,
    mode: ["mean", "max", "chunk"].indexOf(mode),
  };
}

interface Keep {
  n: number;
  begin: number;
  end: number;
  count: number;
  rowEnd: number;
  inputs?: "ties" | "all equal" | "-inf and NaN";
}

function keep({ n, begin, end, count, rowEnd, inputs }: Keep, random: Random): Args {
  const score: Record<NonNullable<Keep["inputs"]>, () => number> = {
    ties: () => random.below(4),
    "all equal": () => 0.25,
    "-inf and NaN": () => [-Infinity, NaN, random.normal()][random.below(3)],
  };
  return {
    keep: unwritten("i32", [2, n, begin + count + rowEnd - end + 3]),
    scores: tensor("f32", [2, n, rowEnd + 7], inputs ? score[inputs] : random.normal),
    slot: 1,
    begin,
    end,
    count,
    rowEnd,
  };
}

/** keep[2, n, count + 2] for slot 1: ascending rows out of `length`, the first place after them -1. */
function kept(n: number, length: number, count: number, random: Random): Plain {
  const rows = range(n).map(() => random.shuffled(length).slice(0, count).sort((a, b) => a - b));
  return tensor("i32", [2, n, count + 2], (s, h, i) => s === 1 ? rows[h][i] ?? -1 : NOWHERE);
}

interface Compact {
  length: number;
  count: number;
  kvHeads: number;
  headDim: number;
  dtype: KvDType;
  tail?: number;
  /** One list of rows for all heads. */
  shared?: true;
  also?: false;
}

function compact({ length, count, kvHeads, headDim, dtype, tail, shared, also = undefined }: Compact, random: Random): Args {
  const capacity = length + 9;
  return {
    rows: kvRows({ lengths: [4, length], kvHeads, headDim, capacity, dtype, tail }, random),
    also: also === false ? null : tensor("f32", [2, kvHeads, capacity], random.uniform),
    keep: kept(shared ? 1 : kvHeads, length, count, random),
    slot: 1,
    count,
  };
}

interface Pick {
  length: number;
  count: number;
  /** Width of a row; none: the tensor has rank 1. */
  width?: number;
  dtype: KvDType | "i32";
}

function pickRows({ length, count, width, dtype }: Pick, random: Random): Args {
  const number = dtype === "i32" ? () => random.below(1 << 20) : random.normal;
  return { tensor: tensor(dtype, width ? [length, width] : [length], number), keep: kept(1, length, count, random), slot: 1, count };
}

interface Evict {
  lengths: number[];
  inactive?: number[];
  kvHeads: number;
  dtype?: KvDType;
  sink: number;
  recent: number;
  budget: number;
  inputs?: "all equal" | "-inf and NaN";
}

function evict({ lengths, inactive, kvHeads, dtype, sink, recent, budget, inputs }: Evict, random: Random): Args {
  const capacity = Math.max(...lengths) + 9;
  const shape = [lengths.length, kvHeads, capacity];
  const score = () => inputs === "all equal" ? 0.5 : inputs ? [-Infinity, NaN, 1][random.below(3)] : random.uniform();
  return {
    rows: kvRows({ lengths, inactive, kvHeads, headDim: 32, capacity, dtype, tail: Infinity }, random),
    mass: tensor("f32", shape, random.uniform),
    scores: tensor("f32", shape, (s, _h, row) => row < lengths[s] ? score() : NaN),
    sink,
    recent,
    budget,
  };
}

export const evictionCases: Case[] = [
  ...cases<Mass>("attentionMass", twice(naive("f32")), attentionMass, [
    { lengths: [100], count: 100, kvHeads: 3, group: 2, headDim: 32 },
    { lengths: [300, 9], count: 70, kvHeads: 2, group: 3, headDim: 80, dtype: "f16" },
    { lengths: [257], count: 64, first: 32, kvHeads: 2, group: 2, headDim: 128, dtype: "bf16", perHead: true },
    { lengths: [129], count: 129, kvHeads: 1, group: 5, headDim: 160, dtype: "q8", weighted: true },
    { lengths: [200], count: 150, kvHeads: 2, group: 2, headDim: 32, window: 40 },
    { lengths: [200], count: 30, kvHeads: 2, group: 2, headDim: 32, softCap: 2, weighted: true },
    { lengths: [1], count: 1, kvHeads: 1, group: 1, headDim: 8 },
    { lengths: [300], kvHeads: 2, group: 3, headDim: 32 },
    { lengths: [5, 300, 128], inactive: [0], kvHeads: 2, group: 2, headDim: 32, dtype: "f16" },
    { lengths: [5, 300, 129], kvHeads: 2, group: 4, headDim: 64, perHead: true, window: 33 },
  ]),
  ...cases<Rates>("massRates", twice(naive("f32")), massRates, [
    { lengths: [100], kvHeads: 3 },
    { lengths: [5, 300, 12], inactive: [1], kvHeads: 2, perHead: 2 },
    { lengths: [5, 300, 12], kvHeads: 2, slot: 1 },
  ]),
  ...cases<Pool>("poolScores", twice(naive("f32")), poolScores, [
    { capacity: 100, n: 3, m: 3, begin: 4, end: 90, kernel: 5, mode: "mean" },
    { capacity: 100, n: 3, m: 3, begin: 4, end: 90, kernel: 7, mode: "max" },
    { capacity: 100, n: 4, m: 1, begin: 4, end: 93, kernel: 10, mode: "chunk" },
    { capacity: 100, n: 4, m: 2, begin: 0, end: 100, kernel: 1, mode: "mean" },
    { capacity: 9000, n: 1, m: 1, begin: 0, end: 8999, kernel: 63, mode: "mean" },
    { capacity: 9000, n: 2, m: 1, begin: 1, end: 9000, kernel: 20, mode: "chunk" },
    { capacity: 20, n: 1, m: 1, begin: 7, end: 8, kernel: 5, mode: "max" },
  ]),
  ...cases<Keep>("keep", exact, keep, [
    { n: 3, begin: 4, end: 200, count: 50, rowEnd: 232 },
    { n: 1, begin: 0, end: 3000, count: 1000, rowEnd: 3000 },
    { n: 2, begin: 0, end: 30, count: 30, rowEnd: 33 },
    { n: 2, begin: 5, end: 5, count: 0, rowEnd: 9 },
    { n: 2, begin: 0, end: 90, count: 33, rowEnd: 99, inputs: "ties" },
    { n: 2, begin: 0, end: 90, count: 33, rowEnd: 99, inputs: "all equal" },
    { n: 2, begin: 0, end: 90, count: 70, rowEnd: 99, inputs: "-inf and NaN" },
  ]),
  ...cases<Compact>("compact", exact, compact, [
    { length: 150, count: 60, kvHeads: 2, headDim: 32, dtype: "f32" },
    { length: 150, count: 60, kvHeads: 3, headDim: 32, dtype: "f16", shared: true, also: false },
    { length: 40, count: 39, kvHeads: 2, headDim: 20, dtype: "bf16", tail: 5 },
    { length: 300, count: 1, kvHeads: 1, headDim: 64, dtype: "f16", tail: 9 },
    { length: 20, count: 20, kvHeads: 2, headDim: 32, dtype: "f16" },
  ]),
  ...cases<Pick>("pickRows", exact, pickRows, [
    { length: 150, count: 60, width: 32, dtype: "f32" },
    { length: 70, count: 33, width: 600, dtype: "f32" },
    { length: 70, count: 70, width: 5, dtype: "bf16" },
    { length: 90, count: 40, dtype: "i32" },
  ]),
  ...cases<Evict>("evict", exact, evict, [
    { lengths: [33], kvHeads: 3, sink: 4, recent: 8, budget: 32 },
    { lengths: [33, 50, 20], inactive: [2], kvHeads: 2, sink: 0, recent: 0, budget: 32, dtype: "f16" },
    { lengths: [33], kvHeads: 2, sink: 4, recent: 100, budget: 32 },
    { lengths: [33], kvHeads: 2, sink: 4, recent: 8, budget: 32, inputs: "all equal" },
    { lengths: [33], kvHeads: 2, sink: 4, recent: 8, budget: 32, dtype: "bf16", inputs: "-inf and NaN" },
    { lengths: [32], kvHeads: 2, sink: 4, recent: 8, budget: 32 },
  ]),
];
