/** Cases of selection, and of moving rows. */
import { type Plain, range } from "../reference/plain.ts";
import { type Args, type Case, cases, exact, naive, twice } from "./case.ts";
import { activeSlots, type KvDType, kvRows, NOWHERE, tensor, unwritten } from "./inputs.ts";
import type { Random } from "./random.ts";

/** Rows [sink, ...) cut into clusters: offsets[slots, kvHeads, most + 1], nowhere past a slot's clusters. */
function clusterOffsets(
  counts: readonly number[],
  kvHeads: number,
  most: number,
  size: (s: number, h: number, c: number) => number,
  sink = 16,
): Plain {
  const offsets = tensor("i32", [counts.length, kvHeads, most + 1], () => NOWHERE);
  counts.forEach((count, s) => {
    for (const h of range(kvHeads)) {
      let row = sink;
      for (const c of range(count + 1)) {
        offsets.data[(s * kvHeads + h) * (most + 1) + c] = row;
        row += size(s, h, c);
      }
    }
  });
  return offsets;
}

interface CentroidScores {
  /** Clusters in use, per slot. */
  counts: number[];
  inactive?: number[];
  kvHeads: number;
  group: number;
  headDim: number;
  perHead?: true;
  /** How much of the radius counts; without it no radius is given. */
  bound?: number;
  inputs?: "all keys equal" | "empty clusters" | "every cluster empty" | "huge queries";
}

function centroidScores(row: CentroidScores, random: Random): Args {
  const { counts, inactive = [], kvHeads, group, headDim, perHead = false, bound, inputs } = row;
  const [slots, heads, most] = [counts.length, kvHeads * group, Math.max(1, ...counts) + 3];
  const used = (s: number, c: number) => c < counts[s] && !inactive.includes(s);
  const sizes = inputs === "empty clusters"
    ? () => random.below(3)
    : inputs === "every cluster empty"
    ? () => 0
    : () => 1 + random.below(9);
  return {
    scores: unwritten("f32", [slots, perHead ? heads : kvHeads, most]),
    q: tensor("f32", [slots, heads, headDim], (s) => inactive.includes(s) ? NaN : random.normal() * (inputs === "huge queries" ? 1000 : 1)),
    centroids: tensor(
      "f32",
      [slots, kvHeads, most, headDim],
      (s, _h, c) => !used(s, c) ? NaN : inputs === "all keys equal" ? 0.75 : random.normal(),
    ),
    radius: bound === undefined ? null : tensor("f32", [slots, kvHeads, most], (s, _h, c) => used(s, c) ? Math.abs(random.normal()) : NaN),
    offsets: clusterOffsets(counts, kvHeads, most, sizes),
    count: tensor("i32", [slots], (s) => counts[s]),
    active: activeSlots(slots, inactive),
    scale: Math.fround(1 / Math.sqrt(headDim)),
    bound: Math.fround(bound ?? 0),
  };
}

interface TopK {
  slots?: number;
  inactive?: number[];
  n: number;
  width: number;
  k: number;
  inputs?: "ties" | "all equal" | "-inf and NaN" | "all -inf" | "+inf" | "both zeros";
}

function topk({ slots = 1, inactive = [], n, width, k, inputs }: TopK, random: Random): Args {
  const score: Record<NonNullable<TopK["inputs"]>, () => number> = {
    ties: () => random.below(5),
    "all equal": () => 0.25,
    "-inf and NaN": () => [-Infinity, NaN, random.normal()][random.below(3)],
    "all -inf": () => -Infinity,
    "+inf": () => [Infinity, random.normal()][random.below(2)],
    "both zeros": () => [0, -0, -1][random.below(3)],
  };
  return {
    order: unwritten("i32", [slots, n, k]),
    scores: tensor("f32", [slots, n, width], inputs ? score[inputs] : random.normal),
    active: activeSlots(slots, inactive),
  };
}

export interface FillBudget {
  /** Clusters in use, per slot; their sizes are random up to `largest`. */
  counts: number[];
  inactive?: number[];
  kvHeads: number;
  /** One ranking for each of so many heads per KV head. */
  perHead?: number;
  largest: number;
  /** Clusters ranked. */
  k: number;
  budget: number;
}

export function fillBudget({ counts, inactive, kvHeads, perHead = 1, largest, k, budget }: FillBudget, random: Random): Args {
  const [slots, n, most] = [counts.length, kvHeads * perHead, Math.max(...counts) + 2];
  const ranked = counts.map((count) => range(n).map(() => random.shuffled(count)));
  return {
    index: unwritten("i32", [slots, n, budget]),
    order: tensor("i32", [slots, n, k], (s, h, i) => ranked[s][h][i] ?? -1),
    offsets: clusterOffsets(counts, kvHeads, most, () => random.below(largest + 1)),
    active: activeSlots(slots, inactive),
  };
}

interface GatherRows {
  slots?: number;
  kvHeads: number;
  capacity: number;
  width: number;
  budget: number;
  dtype: KvDType;
  inputs?: "no row";
}

function gatherRows({ slots = 1, kvHeads, capacity, width, budget, dtype, inputs }: GatherRows, random: Random): Args {
  const valid = inputs === "no row" ? 0 : budget - 2;
  return {
    to: unwritten("f32", [slots, kvHeads, budget, width]),
    from: tensor(dtype, [slots, kvHeads, capacity, width], random.normal),
    index: tensor("i32", [slots, kvHeads, budget], (_s, _h, i) => i < valid ? random.below(capacity) : -1),
  };
}

interface SetTail {
  lengths: number[];
  inactive?: number[];
  /** Where the tail begins before is a row less than its length by so much. */
  tail: number;
  sink: number;
  width: number;
}

function setTail({ lengths, inactive, tail, sink, width }: SetTail, random: Random): Args {
  return { rows: kvRows({ lengths, inactive, kvHeads: 1, headDim: 8, capacity: 64, tail }, random), sink, width };
}

interface Copy {
  dtype: "f32" | "f16" | "bf16" | "q8" | "i32" | "u32";
  from: number[];
  fromRow: number;
  to: number[];
  toRow: number;
  count: number;
}

function copy({ dtype, from, fromRow, to, toRow, count }: Copy, random: Random): Args {
  const number = dtype === "i32" || dtype === "u32" ? () => random.below(1 << 30) : random.normal;
  return { to: tensor(dtype, to, number), toRow, from: tensor(dtype, from, number), fromRow, count };
}

export const selectCases: Case[] = [
  ...cases("centroidScores", twice(naive("f32")), centroidScores, [
    { counts: [37], kvHeads: 3, group: 2, headDim: 32 },
    { counts: [1], kvHeads: 1, group: 1, headDim: 32 },
    { counts: [0], kvHeads: 2, group: 1, headDim: 32 },
    { counts: [205], kvHeads: 3, group: 1, headDim: 64 },
    { counts: [64], kvHeads: 2, group: 8, headDim: 128 },
    { counts: [63], kvHeads: 1, group: 3, headDim: 80 },
    { counts: [65], kvHeads: 1, group: 3, headDim: 20 },
    { counts: [5, 300, 41], kvHeads: 3, group: 2, headDim: 32 },
    { counts: [5, 300, 41], inactive: [1], kvHeads: 2, group: 2, headDim: 32 },
    { counts: [48], kvHeads: 3, group: 2, headDim: 32, inputs: "all keys equal" },
    { counts: [48], kvHeads: 3, group: 2, headDim: 32, inputs: "empty clusters" },
    { counts: [7], kvHeads: 3, group: 2, headDim: 32, inputs: "every cluster empty" },
    { counts: [48], kvHeads: 2, group: 3, headDim: 32, inputs: "huge queries" },
    { counts: [37], kvHeads: 3, group: 2, headDim: 32, perHead: true },
    { counts: [5, 33, 12], inactive: [0], kvHeads: 2, group: 8, headDim: 64, perHead: true },
    { counts: [48], kvHeads: 1, group: 2, headDim: 32, perHead: true, inputs: "empty clusters" },
    { counts: [48], kvHeads: 2, group: 3, headDim: 32, bound: 0.3 },
    { counts: [5, 0, 65], kvHeads: 2, group: 2, headDim: 20, bound: 1, inputs: "empty clusters" },
    { counts: [37], kvHeads: 2, group: 2, headDim: 64, bound: 0.5, perHead: true },
  ]),
  ...cases("topk", exact, topk, [
    { n: 3, width: 37, k: 37 },
    { n: 1, width: 1, k: 1 },
    { n: 2, width: 500, k: 1 },
    { n: 2, width: 500, k: 64 },
    { n: 3, width: 1031, k: 1000 },
    { slots: 3, inactive: [1], n: 2, width: 130, k: 33 },
    { n: 3, width: 300, k: 100, inputs: "ties" },
    { n: 2, width: 77, k: 40, inputs: "all equal" },
    { n: 3, width: 90, k: 80, inputs: "-inf and NaN" },
    { n: 2, width: 33, k: 8, inputs: "all -inf" },
    { n: 2, width: 33, k: 33, inputs: "+inf" },
    { n: 2, width: 65, k: 60, inputs: "both zeros" },
  ]),
  ...cases("fillBudget", exact, fillBudget, [
    { counts: [37], kvHeads: 3, largest: 9, k: 37, budget: 64 },
    { counts: [12], kvHeads: 3, largest: 9, k: 12, budget: 500 },
    { counts: [12], kvHeads: 1, largest: 300, k: 12, budget: 17 },
    { counts: [37], kvHeads: 2, largest: 0, k: 37, budget: 16 },
    { counts: [37], kvHeads: 2, largest: 1, k: 16, budget: 16 },
    { counts: [60], kvHeads: 2, largest: 9, k: 5, budget: 64 },
    { counts: [5, 60, 0], kvHeads: 3, largest: 9, k: 60, budget: 100 },
    { counts: [5, 60, 7], inactive: [1], kvHeads: 3, largest: 9, k: 20, budget: 33 },
    { counts: [37], kvHeads: 2, perHead: 3, largest: 9, k: 37, budget: 64 },
    { counts: [37], kvHeads: 1, largest: 9, k: 37, budget: 1 },
  ]),
  ...cases("gatherRows", twice(naive("f32")), gatherRows, [
    { kvHeads: 3, capacity: 100, width: 32, budget: 17, dtype: "f32" },
    { kvHeads: 3, capacity: 100, width: 32, budget: 17, dtype: "f16" },
    { kvHeads: 3, capacity: 100, width: 32, budget: 17, dtype: "bf16" },
    { kvHeads: 3, capacity: 100, width: 32, budget: 17, dtype: "q8" },
    { slots: 3, kvHeads: 2, capacity: 33, width: 20, budget: 9, dtype: "f16" },
    { slots: 3, kvHeads: 2, capacity: 33, width: 20, budget: 9, dtype: "q8" },
    { kvHeads: 1, capacity: 5, width: 8, budget: 4, dtype: "f32", inputs: "no row" },
  ]),
  ...cases("setTail", exact, setTail, [
    { lengths: [50], tail: 50, sink: 4, width: 16 },
    { lengths: [50], tail: 10, sink: 4, width: 16 },
    { lengths: [10], tail: 10, sink: 4, width: 16 },
    { lengths: [3], tail: 3, sink: 4, width: 16 },
    { lengths: [16, 0, 41], inactive: [2], tail: 64, sink: 0, width: 15 },
  ]),
  ...cases("copy", exact, copy, [
    { dtype: "f32", from: [5, 33], fromRow: 4, to: [3, 33], toRow: 0, count: 1 },
    { dtype: "f32", from: [2, 3, 40, 17], fromRow: 43, to: [60, 17], toRow: 2, count: 37 },
    { dtype: "f16", from: [9, 33], fromRow: 1, to: [2, 9, 33], toRow: 9, count: 7 },
    { dtype: "bf16", from: [9, 33], fromRow: 0, to: [9, 33], toRow: 0, count: 9 },
    { dtype: "q8", from: [9, 33], fromRow: 2, to: [20, 33], toRow: 11, count: 7 },
    { dtype: "i32", from: [100], fromRow: 13, to: [50], toRow: 1, count: 49 },
    { dtype: "u32", from: [3, 2], fromRow: 1, to: [4, 2], toRow: 2, count: 2 },
    { dtype: "i32", from: [4], fromRow: 0, to: [4], toRow: 0, count: 0 },
  ]),
];
