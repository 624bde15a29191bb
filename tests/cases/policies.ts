/** Cases of the ops that rank by more than a centroid: radius, estimates, pages. */
import { type Plain, range } from "../reference/plain.ts";
import { type Args, type Case, cases, exact, naive, twice } from "./case.ts";
import { type KvDType, kvRows, layer, NOWHERE, tensor, unwritten, work } from "./inputs.ts";
import type { Random } from "./random.ts";
import { type FillBudget, fillBudget } from "./select.ts";

/** Clusters per piece of estimates (RKV_PIECE). */
const PIECE = 256;

interface Estimates {
  /** Clusters in use, per slot. */
  counts: number[];
  inactive?: number[];
  kvHeads: number;
  group: number;
  headDim: number;
  perHead?: true;
  softCap?: number;
  inputs?: "none left" | "no rows attended";
}

function attendEstimates(row: Estimates, random: Random): Args {
  const { counts, inactive = [], kvHeads, group, headDim, perHead, softCap, inputs } = row;
  const [slots, heads, most] = [counts.length, kvHeads * group, Math.max(...counts) + 2];
  const used = (s: number, c: number) => c < counts[s] && !inactive.includes(s);
  const isNothing = inputs === "no rows attended";
  return {
    attended: tensor("f32", [slots, heads, headDim], () => isNothing ? 0 : random.normal()),
    lse: tensor("f32", [slots, heads], () => isNothing ? -Infinity : 3 * random.normal()),
    q: tensor("f32", [slots, heads, headDim], () => 2 * random.normal()),
    rows: kvRows({ lengths: counts.map(() => 5), inactive, kvHeads, headDim, capacity: 8 }, random),
    layer: layer({ hidden: 16, kvHeads, group, headDim, softCap }, random),
    centroids: tensor("f32", [slots, kvHeads, most, headDim], (s, _h, c) => used(s, c) ? random.normal() : NaN),
    means: tensor("f32", [slots, kvHeads, most, headDim], (s, _h, c) => used(s, c) ? random.normal() : NaN),
    bias: tensor(
      "f32",
      [slots, perHead ? heads : kvHeads, most],
      (s, _h, c) => used(s, c) && inputs !== "none left" && random.below(4) > 0 ? Math.log(1 + random.below(99)) : -Infinity,
    ),
    work: work(slots * heads * Math.ceil(most / PIECE) * (headDim + 2)),
  };
}

interface Radius {
  begin: number;
  rows: number;
  clusters: number;
  kvHeads: number;
  headDim: number;
  dtype?: KvDType;
}

function radius({ begin, rows, clusters, kvHeads, headDim, dtype = "f32" }: Radius, random: Random): Args {
  const [capacity, most, cluster] = [begin + rows + 5, clusters + 4, 2];
  const inUse = (s: number, c: number) => s === 1 && c >= cluster && c < cluster + clusters;
  const ends = range(kvHeads).map(() => range(clusters - 1).map(() => random.below(rows + 1)).sort((a, b) => a - b));
  const permuted = range(kvHeads).map(() => random.shuffled(rows));
  const inRun = (s: number, row: number) => s === 1 && row >= begin && row < begin + rows;
  return {
    radius: unwritten("f32", [2, kvHeads, most]),
    keys: tensor(dtype, [2, kvHeads, capacity, headDim], (s, _h, row) => inRun(s, row) ? random.normal() : NaN),
    centroids: tensor("f32", [2, kvHeads, most, headDim], (s, _h, c) => inUse(s, c) ? random.normal() : NaN),
    order: tensor("i32", [2, kvHeads, capacity], (s, h, row) => inRun(s, row) ? begin + permuted[h][row - begin] : NOWHERE),
    offsets: tensor(
      "i32",
      [2, kvHeads, most + 1],
      (s, h, c) => !inUse(s, c) && !inUse(s, c - 1) ? NOWHERE : begin + (c === cluster ? 0 : ends[h][c - cluster - 1] ?? rows),
    ),
    run: Int32Array.of(1, begin, rows, cluster, clusters),
  };
}

/** As fillBudget, with a bias for every cluster. */
function fillWhole(row: FillBudget, random: Random): Args {
  const { index, order, offsets, active } = fillBudget(row, random);
  const [slots, n] = (index as Plain).shape;
  return {
    index,
    bias: unwritten("f32", [slots, n, Math.max(...row.counts) + 2]),
    order,
    offsets,
    count: tensor("i32", [slots], (s) => row.counts[s]),
    active,
  };
}

interface Pages {
  length: number;
  kvHeads: number;
  headDim: number;
  dtype?: KvDType;
  /** dtype of the bounds. */
  bounds?: KvDType;
  page: number;
  begin: number;
  count: number;
}

function pageBounds({ length, kvHeads, headDim, dtype = "f32", bounds = "f32", page, begin, count }: Pages, random: Random): Args {
  const capacity = length + 9;
  return {
    bounds: unwritten(bounds, [2, kvHeads, Math.ceil(capacity / page), 2, headDim]),
    rows: kvRows({ lengths: [3, length], kvHeads, headDim, capacity, dtype }, random),
    page,
    slot: 1,
    begin,
    count,
  };
}

interface PageScores {
  lengths: number[];
  inactive?: number[];
  tail: number;
  kvHeads: number;
  group: number;
  headDim: number;
  bounds?: KvDType;
  page: number;
  sink?: number;
  perHead?: true;
}

function pageScores(row: PageScores, random: Random): Args {
  const { lengths, inactive = [], tail, kvHeads, group, headDim, bounds = "f32", page, sink = 0, perHead } = row;
  const [slots, heads, capacity] = [lengths.length, kvHeads * group, Math.max(...lengths) + 9];
  const pages = Math.ceil(capacity / page);
  const box = (s: number, p: number) => !inactive.includes(s) && (p + 1) * page <= lengths[s] - tail;
  return {
    scores: unwritten("f32", [slots, perHead ? heads : kvHeads, pages]),
    q: tensor("f32", [slots, heads, headDim], (s) => inactive.includes(s) ? NaN : random.normal()),
    bounds: tensor(
      bounds,
      [slots, kvHeads, pages, 2, headDim],
      (s, _h, p, which) => box(s, p) ? Math.abs(random.normal()) * (which ? 1 : -1) : NaN,
    ),
    rows: kvRows({ lengths, inactive, kvHeads, headDim, capacity, tail }, random),
    scale: Math.fround(1 / Math.sqrt(headDim)),
    page,
    sink,
  };
}

export const policyCases: Case[] = [
  ...cases<Estimates>("attendEstimates", twice(naive("f32")), attendEstimates, [
    { counts: [37], kvHeads: 3, group: 2, headDim: 32 },
    { counts: [300], kvHeads: 2, group: 1, headDim: 80, softCap: 5 },
    { counts: [5, 700, 12], inactive: [1], kvHeads: 2, group: 3, headDim: 32 },
    { counts: [600, 5], kvHeads: 1, group: 4, headDim: 128, perHead: true },
    { counts: [37], kvHeads: 2, group: 2, headDim: 32, inputs: "none left" },
    { counts: [37], kvHeads: 2, group: 2, headDim: 20, inputs: "no rows attended" },
  ]),
  ...cases<Radius>("radius", twice(naive("f32")), radius, [
    { begin: 16, rows: 100, clusters: 7, kvHeads: 3, headDim: 32 },
    { begin: 0, rows: 1, clusters: 1, kvHeads: 1, headDim: 20, dtype: "f16" },
    { begin: 3, rows: 20, clusters: 30, kvHeads: 2, headDim: 64, dtype: "bf16" },
    { begin: 16, rows: 300, clusters: 9, kvHeads: 2, headDim: 33, dtype: "q8" },
  ]),
  ...cases<FillBudget>("fillWhole", twice(naive("f32")), fillWhole, [
    { counts: [37], kvHeads: 3, largest: 9, k: 37, budget: 64 },
    { counts: [12], kvHeads: 1, largest: 300, k: 12, budget: 17 },
    { counts: [37], kvHeads: 2, largest: 1, k: 16, budget: 16 },
    { counts: [5, 60, 0], kvHeads: 3, largest: 9, k: 60, budget: 500 },
    { counts: [5, 60, 7], inactive: [1], kvHeads: 3, largest: 9, k: 20, budget: 33 },
    { counts: [37], kvHeads: 2, perHead: 3, largest: 9, k: 37, budget: 64 },
    { counts: [9], kvHeads: 1, largest: 9, k: 9, budget: 0 },
  ]),
  ...cases<Pages>("pageBounds", exact, pageBounds, [
    { length: 100, kvHeads: 3, headDim: 32, page: 16, begin: 0, count: 100 },
    { length: 100, kvHeads: 2, headDim: 33, page: 7, begin: 40, count: 22, dtype: "f16", bounds: "f16" },
    { length: 513, kvHeads: 1, headDim: 128, page: 16, begin: 500, count: 13, dtype: "bf16", bounds: "bf16" },
    { length: 60, kvHeads: 2, headDim: 32, page: 16, begin: 0, count: 69, dtype: "f16" },
    { length: 5, kvHeads: 2, headDim: 20, page: 1, begin: 2, count: 2 },
  ]),
  ...cases<Pages>("pageBounds", twice(naive("f32")), pageBounds, [
    { length: 100, kvHeads: 2, headDim: 32, page: 16, begin: 0, count: 100, dtype: "q8" },
  ]),
  ...cases<PageScores>("pageScores", twice(naive("f32")), pageScores, [
    { lengths: [601], tail: 9, kvHeads: 3, group: 2, headDim: 32, page: 16 },
    { lengths: [601], tail: 9, kvHeads: 2, group: 1, headDim: 80, page: 7, sink: 21, bounds: "f16" },
    { lengths: [90, 4000, 10], inactive: [0], tail: 3, kvHeads: 2, group: 4, headDim: 128, page: 16, bounds: "bf16" },
    { lengths: [601, 33], tail: 9, kvHeads: 2, group: 3, headDim: 20, page: 16, perHead: true },
  ]),
];
