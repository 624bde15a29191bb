/** Cases of attention. */
import { at, range, type Rows } from "../reference/plain.ts";
import { type Args, type Case, cases, naive, twice } from "./case.ts";
import { type KvDType, kvRows, layer, NOWHERE, tensor, unwritten, work } from "./inputs.ts";
import type { Random } from "./random.ts";

/** Rows of attended positions per piece of decode attention (RKV_PIECE). */
const PIECE = 256;

interface Attention {
  kvHeads: number;
  group: number;
  headDim: number;
  dtype?: KvDType;
  window?: number;
  softCap?: number;
  inputs?: "all keys equal" | "huge queries" | "-inf logits";
}

/** Inputs that both attentions are tried with. */
function special(rows: Rows, inputs: Attention["inputs"]): void {
  if (inputs === "all keys equal") rows.keys.data.forEach((key, i, keys) => keys[i] = Number.isNaN(key) ? NaN : 0.75);
  if (inputs === "-inf logits") { // every third key is infinitely far away from a positive query
    const [, , , headDim] = rows.keys.shape;
    rows.keys.data.forEach((key, i, keys) =>
      keys[i] = Number.isNaN(key) || Math.floor(i / headDim) % 3 ? key : i % headDim ? 0 : -Infinity
    );
  }
}

function query(inputs: Attention["inputs"], random: Random): number {
  const x = random.normal();
  return inputs === "huge queries" ? 1000 * x : inputs === "-inf logits" ? 0.1 + Math.abs(x) : x;
}

interface Attend extends Attention {
  lengths: number[];
  inactive?: number[];
  sink: number;
  /** Last rows, always read; all that follow the sink unless said. */
  tail?: number;
  /** Width of the index; none: no index. */
  budget?: number;
  perHead?: true;
  /** How the index is filled: with rows between sink and tail, as many as there are; with some outside the rows held; not at all. */
  index?: "out of range" | "all -1";
  lse?: false;
}

function attend(row: Attend, random: Random): Args {
  const { lengths, inactive = [], kvHeads, group, headDim, sink, tail = Infinity, budget, perHead, index, window, softCap, inputs } = row;
  const [slots, heads, capacity] = [lengths.length, kvHeads * group, Math.max(...lengths) + 9];
  const rows = kvRows({ ...row, capacity, tail, shuffled: budget !== undefined }, random);
  special(rows, inputs);
  const chosen = lengths.map((length, s) =>
    range(perHead ? heads : kvHeads).map(() => {
      if (index === "all -1") return [];
      const between = range(sink, Math.max(sink, at(rows.tailBegin, 1, s)[0]));
      const picked = random.shuffled(between.length).map((i) => between[i]);
      return index === "out of range" ? picked.flatMap((r) => [r, length + r, NOWHERE]) : picked;
    })
  );
  return {
    attended: unwritten("f32", [slots, heads, headDim]),
    lse: row.lse === false ? null : unwritten("f32", [slots, heads]),
    q: tensor("f32", [slots, heads, headDim], (s) => inactive.includes(s) ? NaN : query(inputs, random)),
    rows,
    layer: layer({ hidden: 16, kvHeads, group, headDim, window, softCap }, random),
    index: budget === undefined ? null : tensor("i32", [slots, perHead ? heads : kvHeads, budget], (s, h, i) => chosen[s][h][i] ?? -1),
    work: work(slots * heads * (Math.ceil(capacity / PIECE) + 2) * (headDim + 2)),
    sink,
  };
}

interface AttendChunk extends Attention {
  /** Rows held before the chunk. */
  before: number;
  count: number;
  slots?: number;
  slot?: number;
  /** Rows of q beyond the chunk. */
  beyond?: number;
  lse?: false;
}

function attendChunk(row: AttendChunk, random: Random): Args {
  const { before, count, slots = 1, slot = 0, beyond = 0, kvHeads, group, headDim, window, softCap, inputs } = row;
  const heads = kvHeads * group;
  const others = range(slots).filter((s) => s !== slot);
  const rows = kvRows({ ...row, lengths: range(slots).map(() => before + count), inactive: others, capacity: before + count + 9 }, random);
  special(rows, inputs);
  return {
    attended: unwritten("f32", [count + beyond, heads, headDim]),
    lse: row.lse === false ? null : unwritten("f32", [count + beyond, heads]),
    q: tensor("f32", [count + beyond, heads, headDim], (i) => i < count ? query(inputs, random) : NaN),
    rows,
    layer: layer({ hidden: 16, kvHeads, group, headDim, window, softCap }, random),
    slot,
    count,
  };
}

export const attentionCases: Case[] = [
  // Rows of bytes may meet queries and probabilities of 16 bits.
  ...cases<Attend>("attend", twice(naive("bf16")), attend, [
    { lengths: [37], kvHeads: 3, group: 2, headDim: 32, sink: 0, dtype: "q8" },
    { lengths: [600], kvHeads: 3, group: 2, headDim: 32, sink: 16, tail: 33, budget: 64, dtype: "q8" },
    { lengths: [513], kvHeads: 2, group: 3, headDim: 96, sink: 16, dtype: "q8" },
    { lengths: [700], kvHeads: 1, group: 8, headDim: 128, sink: 16, tail: 33, budget: 300, perHead: true, dtype: "q8" },
    { lengths: [37, 301], kvHeads: 2, group: 2, headDim: 64, sink: 4, softCap: 3, dtype: "q8" },
    { lengths: [300], kvHeads: 2, group: 2, headDim: 32, sink: 4, inputs: "all keys equal", dtype: "q8" },
  ]),
  ...cases<Attend>("attend", twice(naive("f32")), attend, [
    { lengths: [37], kvHeads: 3, group: 2, headDim: 32, sink: 0 },
    { lengths: [37], kvHeads: 3, group: 2, headDim: 32, sink: 0, dtype: "f16" },
    { lengths: [37], kvHeads: 3, group: 2, headDim: 32, sink: 0, dtype: "bf16" },
    { lengths: [1], kvHeads: 5, group: 1, headDim: 8, sink: 0 },
    { lengths: [257], kvHeads: 2, group: 1, headDim: 64, sink: 4, dtype: "f16" },
    { lengths: [700], kvHeads: 1, group: 8, headDim: 128, sink: 16, dtype: "f16" },
    { lengths: [513], kvHeads: 2, group: 3, headDim: 80, sink: 16, dtype: "bf16" },
    { lengths: [512], kvHeads: 2, group: 3, headDim: 20, sink: 0 },
    { lengths: [600], kvHeads: 3, group: 2, headDim: 32, sink: 16, tail: 33, budget: 64 },
    { lengths: [600], kvHeads: 3, group: 2, headDim: 32, sink: 16, tail: 33, budget: 64, dtype: "f16" },
    { lengths: [600], kvHeads: 3, group: 2, headDim: 32, sink: 16, tail: 33, budget: 64, dtype: "bf16" },
    { lengths: [600], kvHeads: 3, group: 2, headDim: 32, sink: 16, tail: 33, budget: 64, perHead: true },
    { lengths: [600], kvHeads: 2, group: 8, headDim: 64, sink: 16, tail: 1, budget: 300, perHead: true, dtype: "f16" },
    { lengths: [113], kvHeads: 2, group: 2, headDim: 32, sink: 16, tail: 33, budget: 64 },
    { lengths: [100], kvHeads: 2, group: 2, headDim: 32, sink: 16, tail: 33, budget: 64 },
    { lengths: [100], kvHeads: 2, group: 2, headDim: 32, sink: 16, tail: 33, budget: 0 },
    { lengths: [100], kvHeads: 2, group: 2, headDim: 32, sink: 0, tail: 0, budget: 24 },
    { lengths: [100], kvHeads: 2, group: 2, headDim: 32, sink: 16, tail: 0, budget: 24, index: "all -1" },
    { lengths: [100], kvHeads: 2, group: 2, headDim: 32, sink: 16, tail: 33, budget: 90, index: "out of range" },
    { lengths: [5], kvHeads: 2, group: 2, headDim: 32, sink: 16 },
    { lengths: [5], kvHeads: 2, group: 2, headDim: 32, sink: 16, budget: 8 },
    { lengths: [100], kvHeads: 1, group: 1, headDim: 32, sink: 0, tail: 0, budget: 8, index: "all -1" },
    { lengths: [0, 3], kvHeads: 2, group: 2, headDim: 32, sink: 4 },
    { lengths: [37, 600, 5], kvHeads: 3, group: 2, headDim: 32, sink: 16, tail: 20, budget: 48 },
    { lengths: [37, 600, 5], inactive: [1], kvHeads: 3, group: 2, headDim: 32, sink: 16, tail: 20, budget: 48, dtype: "f16" },
    { lengths: [300, 2, 41], inactive: [0, 2], kvHeads: 1, group: 3, headDim: 64, sink: 4, lse: false },
    { lengths: [300], kvHeads: 2, group: 2, headDim: 32, sink: 0, window: 50 },
    { lengths: [300], kvHeads: 2, group: 2, headDim: 32, sink: 4, window: 1 },
    { lengths: [300], kvHeads: 2, group: 2, headDim: 32, sink: 4, tail: 30, budget: 20, window: 17 },
    { lengths: [300], kvHeads: 2, group: 2, headDim: 32, sink: 4, softCap: 3 },
    { lengths: [300], kvHeads: 2, group: 2, headDim: 32, sink: 4, window: 20, softCap: 30, inputs: "huge queries" },
    { lengths: [300], kvHeads: 2, group: 2, headDim: 32, sink: 4, inputs: "all keys equal" },
    { lengths: [300], kvHeads: 2, group: 2, headDim: 32, sink: 4, inputs: "huge queries" },
    { lengths: [300], kvHeads: 2, group: 2, headDim: 32, sink: 4, inputs: "-inf logits" },
    // Heads of 64 and 128 channels over rows of 16 bits may go on tensor cores.
    { lengths: [37, 600, 5], inactive: [1], kvHeads: 3, group: 2, headDim: 64, sink: 16, tail: 20, budget: 48, dtype: "bf16" },
    { lengths: [4133], kvHeads: 1, group: 4, headDim: 128, sink: 16, dtype: "bf16" },
    { lengths: [4133], kvHeads: 1, group: 6, headDim: 64, sink: 16, tail: 700, budget: 1500, dtype: "f16" },
    { lengths: [2300], kvHeads: 1, group: 7, headDim: 128, sink: 4, tail: 90, budget: 900, perHead: true, dtype: "bf16" },
    { lengths: [300], kvHeads: 2, group: 4, headDim: 128, sink: 4, tail: 30, budget: 20, window: 17, dtype: "bf16" },
    { lengths: [300], kvHeads: 1, group: 7, headDim: 64, sink: 4, softCap: 3, dtype: "bf16" },
    { lengths: [0, 3], kvHeads: 2, group: 2, headDim: 128, sink: 4, dtype: "f16" },
    { lengths: [100], kvHeads: 2, group: 2, headDim: 64, sink: 16, tail: 33, budget: 90, index: "out of range", dtype: "bf16" },
    { lengths: [100], kvHeads: 1, group: 5, headDim: 128, sink: 0, tail: 0, budget: 8, index: "all -1", dtype: "f16" },
    { lengths: [300], kvHeads: 2, group: 2, headDim: 64, sink: 4, window: 20, softCap: 30, inputs: "huge queries", dtype: "bf16" },
    { lengths: [300], kvHeads: 2, group: 8, headDim: 128, sink: 4, inputs: "all keys equal", dtype: "f16" },
    { lengths: [300], kvHeads: 2, group: 5, headDim: 128, sink: 4, lse: false, dtype: "bf16" },
  ]),
  // Rows of at most 16 bits may be taken as BF16.
  ...cases<AttendChunk>("attendChunk", twice(naive("bf16")), attendChunk, [
    { before: 0, count: 37, kvHeads: 3, group: 2, headDim: 32, dtype: "f16" },
    { before: 0, count: 37, kvHeads: 3, group: 2, headDim: 32, dtype: "bf16" },
    { before: 0, count: 37, kvHeads: 3, group: 2, headDim: 32, dtype: "q8" },
    { before: 255, count: 2, kvHeads: 2, group: 1, headDim: 64, dtype: "f16" },
    { before: 129, count: 130, kvHeads: 1, group: 3, headDim: 20, dtype: "f16" },
    { before: 77, count: 34, kvHeads: 1, group: 8, headDim: 128, dtype: "bf16" },
    { before: 40, count: 7, slots: 3, slot: 1, beyond: 3, kvHeads: 3, group: 2, headDim: 32, dtype: "f16" },
    { before: 250, count: 133, kvHeads: 1, group: 5, headDim: 34, dtype: "q8" },
    { before: 40, count: 100, kvHeads: 2, group: 2, headDim: 32, window: 17, dtype: "f16" },
    { before: 300, count: 40, kvHeads: 2, group: 2, headDim: 32, window: 1, dtype: "bf16" },
    { before: 40, count: 40, kvHeads: 2, group: 2, headDim: 32, window: 64, softCap: 3, dtype: "f16" },
    { before: 90, count: 40, kvHeads: 2, group: 2, headDim: 32, inputs: "all keys equal", dtype: "f16" },
    { before: 90, count: 40, kvHeads: 2, group: 2, headDim: 32, inputs: "huge queries", dtype: "bf16" },
    { before: 90, count: 40, kvHeads: 2, group: 2, headDim: 32, inputs: "-inf logits", dtype: "f16" },
  ]),
  ...cases<AttendChunk>("attendChunk", twice(naive("f32")), attendChunk, [
    { before: 0, count: 37, kvHeads: 3, group: 2, headDim: 32 },
    { before: 0, count: 1, kvHeads: 5, group: 1, headDim: 8 },
    { before: 300, count: 65, kvHeads: 2, group: 1, headDim: 32 },
    { before: 31, count: 33, kvHeads: 2, group: 3, headDim: 80 },
    { before: 40, count: 20, kvHeads: 2, group: 2, headDim: 32, lse: false },
    { before: 40, count: 100, kvHeads: 2, group: 2, headDim: 32, window: 17 },
    { before: 300, count: 40, kvHeads: 2, group: 2, headDim: 32, window: 1 },
    { before: 40, count: 40, kvHeads: 2, group: 2, headDim: 32, window: 64, softCap: 3 },
    { before: 90, count: 40, kvHeads: 2, group: 2, headDim: 32, inputs: "all keys equal" },
    { before: 90, count: 40, kvHeads: 2, group: 2, headDim: 32, inputs: "huge queries" },
    { before: 90, count: 40, kvHeads: 2, group: 2, headDim: 32, inputs: "-inf logits" },
  ]),
];
