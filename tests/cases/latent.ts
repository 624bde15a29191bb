/** Cases of keys in fewer channels. */
import { at, type Plain, range, STEP } from "../reference/plain.ts";
import { type Args, type Case, cases, exact, naive, twice } from "./case.ts";
import { activeSlots, type KvDType, kvRows, NOWHERE, tensor, unwritten } from "./inputs.ts";
import type { Random } from "./random.ts";

/** Cosines and sines of random angles, times `factor`: rotations[n, 2, half]. */
function rotationsOf(n: number, half: number, factor: number, random: Random): Plain {
  const angles = range(n).map(() => range(half).map(() => 7 * random.uniform()));
  return tensor("f32", [n, 2, half], (i, part, j) => factor * (part ? Math.sin(angles[i][j]) : Math.cos(angles[i][j])));
}

interface Latent {
  lengths: number[];
  inactive?: number[];
  kvHeads: number;
  headDim: number;
  /** Channels of a latent. */
  channels: number;
  /** All KV heads of a row share one latent. */
  joined?: true;
  /** One basis for each slot. */
  perSlot?: true;
  /** Pairs whose rotation is undone, and what cosines and sines are multiplied with. */
  half?: number;
  factor?: number;
  dtype?: KvDType;
  latents?: KvDType;
}

function shapes({ lengths, kvHeads, headDim, channels, joined, perSlot }: Latent) {
  const [slots, units, capacity] = [lengths.length, joined ? 1 : kvHeads, Math.max(...lengths) + 9];
  return {
    slots,
    units,
    capacity,
    latents: [slots, units, capacity, channels],
    basis: [perSlot ? slots : 1, units, (kvHeads / units) * headDim],
  };
}

/** Latents of the rows that lie within [0, length) of active slots. */
function latentsOf(row: Latent, random: Random): Plain {
  const { lengths, inactive = [] } = row;
  return tensor(row.latents ?? "f32", shapes(row).latents, (s, _h, i) => i < lengths[s] && !inactive.includes(s) ? random.normal() : NaN);
}

interface ProjectRows extends Latent {
  /** Rows of slot 0; none: a step. */
  count?: number;
}

function projectRows(row: ProjectRows, random: Random): Args {
  const { half, factor = 1, channels } = row;
  const { slots, capacity, latents, basis } = shapes(row);
  const count = row.count ?? slots;
  return {
    latents: unwritten(row.latents ?? "f32", latents),
    rows: kvRows({ ...row, capacity }, random),
    rotations: half ? rotationsOf(count, half, factor, random) : null,
    basis: tensor("f32", [...basis, channels], random.normal),
    slot: row.count === undefined ? STEP : 0,
    count,
  };
}

interface LatentScores extends Latent {
  group: number;
  tail: number;
  sink: number;
  perHead?: true;
  /** Channels of the basis; all of the latents' unless said. */
  fewer?: number;
}

function latentScores(row: LatentScores, random: Random): Args {
  const { inactive = [], kvHeads, group, headDim, channels, joined, perHead, fewer = channels, half, factor = 1, sink } = row;
  const { slots, capacity, basis } = shapes(row);
  return {
    scores: unwritten("f32", [slots, joined ? 1 : perHead ? kvHeads * group : kvHeads, capacity]),
    q: tensor("f32", [slots, kvHeads * group, headDim], (s) => inactive.includes(s) ? NaN : random.normal()),
    latents: latentsOf(row, random),
    basis: tensor("f32", [...basis, fewer], () => random.normal() / 4),
    rotations: half ? rotationsOf(slots, half, factor, random) : null,
    rows: kvRows({ ...row, capacity }, random),
    scale: Math.fround(1 / Math.sqrt(headDim)),
    sink,
  };
}

interface TrimIndex {
  slots: number;
  inactive?: number[];
  n: number;
  budget: number;
  alpha: number;
  inputs?: "no entry" | "all equal";
}

function trimIndex({ slots, inactive, n, budget, alpha, inputs }: TrimIndex, random: Random): Args {
  const width = 2 * budget + 5;
  const scores = tensor("f32", [slots, n, width], () => inputs === "all equal" ? 1 : 3 * random.normal());
  const best = (s: number, h: number) => {
    const row = at(scores, s, h);
    return range(width).sort((a, b) => row[b] - row[a] || a - b).slice(0, budget - h);
  };
  const ranked = range(slots).map((s) => range(n).map((h) => inputs === "no entry" ? [] : best(s, h)));
  return {
    index: tensor("i32", [slots, n, budget], (s, h, i) => ranked[s][h][i] ?? -1),
    scores,
    active: activeSlots(slots, inactive),
    alpha: Math.fround(alpha),
  };
}

interface Reconstruct extends Latent {
  budget: number;
}

function reconstruct(row: Reconstruct, random: Random): Args {
  const { lengths, kvHeads, headDim, channels, half, factor = 1, budget } = row;
  const { slots, units, capacity, basis } = shapes(row);
  const chosen = lengths.map((length) => range(units).map(() => random.shuffled(length).slice(0, budget - 2)));
  return {
    keys: unwritten("f32", [slots, kvHeads, budget, headDim]),
    latents: latentsOf(row, random),
    basis: tensor("f32", [...basis, channels], random.normal),
    index: tensor("i32", [slots, units, budget], (s, h, i) => i === budget - 1 ? NOWHERE : chosen[s][h][i] ?? -1),
    rotations: half ? rotationsOf(capacity, half, factor, random) : null,
    rows: kvRows({ ...row, capacity }, random),
  };
}

interface ChannelMass {
  slots: number;
  slot: number;
  count: number;
  kvHeads: number;
  group: number;
  headDim: number;
  channels: number;
}

function channelMass({ slots, slot, count, kvHeads, group, headDim, channels }: ChannelMass, random: Random): Args {
  return {
    mass: tensor("f32", [slots, kvHeads, channels], random.uniform),
    q: tensor("f32", [count, kvHeads * group, headDim], random.normal),
    basis: tensor("f32", [1, kvHeads, headDim, channels], random.normal),
    slot,
    count,
  };
}

interface PickChannels {
  slots: number;
  slot: number;
  units: number;
  width: number;
  channels: number;
  r: number;
}

function pickChannels({ slots, slot, units, width, channels, r }: PickChannels, random: Random): Args {
  const chosen = range(units).map(() => random.shuffled(channels).slice(0, r - 1));
  return {
    to: unwritten("f32", [slots, units, width, r]),
    basis: tensor("f32", [1, units, width, channels], random.normal),
    order: tensor("i32", [slots, units, r], (s, h, i) => s === slot ? chosen[h][i] ?? -1 : NOWHERE),
    slot,
  };
}

export const latentCases: Case[] = [
  ...cases<ProjectRows>("projectRows", twice(naive("f32")), projectRows, [
    { lengths: [40], count: 40, kvHeads: 3, headDim: 32, channels: 8 },
    { lengths: [90, 5], count: 33, kvHeads: 2, headDim: 80, channels: 20, dtype: "f16", latents: "bf16", perSlot: true },
    { lengths: [140], count: 130, kvHeads: 4, headDim: 32, channels: 33, joined: true, half: 16, latents: "f16" },
    { lengths: [5, 90, 17], inactive: [1], kvHeads: 2, headDim: 64, channels: 16, joined: true, half: 20, factor: 1.3, dtype: "bf16" },
    { lengths: [5, 90, 17], kvHeads: 2, headDim: 64, channels: 16, perSlot: true },
  ]),
  ...cases<LatentScores>("latentScores", twice(naive("f32")), latentScores, [
    { lengths: [300], tail: 9, sink: 4, kvHeads: 3, group: 2, headDim: 32, channels: 8 },
    {
      lengths: [300, 20, 90],
      inactive: [1],
      tail: 9,
      sink: 0,
      kvHeads: 2,
      group: 3,
      headDim: 64,
      channels: 20,
      latents: "f16",
      perSlot: true,
    },
    { lengths: [300, 90], tail: 9, sink: 4, kvHeads: 2, group: 2, headDim: 32, channels: 16, perHead: true, latents: "bf16" },
    {
      lengths: [300, 90],
      tail: 9,
      sink: 4,
      kvHeads: 4,
      group: 2,
      headDim: 32,
      channels: 40,
      fewer: 24,
      joined: true,
      half: 16,
      factor: 1.2,
    },
    { lengths: [8], tail: 5, sink: 4, kvHeads: 2, group: 1, headDim: 32, channels: 8 },
  ]),
  ...cases<TrimIndex>("trimIndex", exact, trimIndex, [
    { slots: 1, n: 3, budget: 50, alpha: 4 },
    { slots: 3, inactive: [1], n: 4, budget: 33, alpha: 2.5 },
    { slots: 1, n: 1, budget: 20, alpha: 1000 },
    { slots: 1, n: 2, budget: 20, alpha: 1, inputs: "all equal" },
    { slots: 1, n: 2, budget: 20, alpha: 1, inputs: "no entry" },
  ]),
  ...cases<Reconstruct>("reconstruct", twice(naive("f32")), reconstruct, [
    { lengths: [100], kvHeads: 3, headDim: 32, channels: 8, budget: 70 },
    { lengths: [100, 3], kvHeads: 4, headDim: 32, channels: 40, budget: 20, joined: true, half: 16, latents: "bf16" },
    {
      lengths: [5, 300, 40],
      inactive: [0],
      kvHeads: 2,
      headDim: 80,
      channels: 33,
      budget: 64,
      joined: true,
      half: 20,
      factor: 1.3,
      latents: "f16",
    },
  ]),
  ...cases<ChannelMass>("channelMass", twice(naive("f32")), channelMass, [
    { slots: 2, slot: 1, count: 40, kvHeads: 3, group: 2, headDim: 32, channels: 32 },
    { slots: 1, slot: 0, count: 1, kvHeads: 1, group: 1, headDim: 20, channels: 33 },
  ]),
  ...cases<PickChannels>("pickChannels", exact, pickChannels, [
    { slots: 2, slot: 1, units: 3, width: 32, channels: 32, r: 9 },
    { slots: 1, slot: 0, units: 1, width: 20, channels: 5, r: 5 },
  ]),
];
