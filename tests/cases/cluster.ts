/** Cases of clustering. */
import { closeness } from "../reference/cluster_ops.ts";
import { at, type Plain, range } from "../reference/plain.ts";
import { type Args, type Case, cases, exact, naive, type Ties, twice } from "./case.ts";
import { type KvDType, NOWHERE, tensor, unwritten, work } from "./inputs.ts";
import type { Random } from "./random.ts";

/** Rows [begin, begin + rows) of `slot` become clusters [cluster, cluster + clusters). */
interface Run {
  slots?: number;
  slot?: number;
  begin: number;
  rows: number;
  cluster?: number;
  clusters: number;
  kvHeads: number;
}

/** Shapes that follow from a run: there is room beside it on every side. */
function shapes({ slots = 1, slot = 0, begin, rows, cluster = 0, clusters, kvHeads }: Run) {
  const [capacity, most] = [begin + rows + 5, cluster + clusters + 3];
  return {
    slot,
    inRun: (s: number, row: number) => s === slot && row >= begin && row < begin + rows,
    inUse: (s: number, c: number) => s === slot && c >= cluster && c < cluster + clusters,
    perHead: [slots, kvHeads],
    perRow: [slots, kvHeads, capacity],
    centroids: [slots, kvHeads, most],
    offsets: [slots, kvHeads, most + 1],
    run: Int32Array.of(slot, begin, rows, cluster, clusters),
  };
}

/** Labels of a run's rows, everywhere else nowhere. */
function labelsOf(run: Run, label: (h: number, row: number) => number): Plain {
  const { perRow, inRun } = shapes(run);
  return tensor("i32", perRow, (s, h, row) => inRun(s, row) ? label(h, row) : NOWHERE);
}

/** Which heads' labels still change: all, or all but the first. */
function movedHeads(run: Run, firstAtRest = false): Plain {
  const { perHead, slot } = shapes(run);
  return tensor("i32", perHead, (s, h) => s !== slot ? NOWHERE : firstAtRest && h === 0 ? 0 : 1);
}

/** order and offsets of a random grouping of a run's rows; the first cluster has no member, and one more where `empty`. */
function grouping(run: Run, random: Random, empty: boolean): { order: Plain; offsets: Plain } {
  const { perRow, offsets, inRun, inUse } = shapes(run);
  const { begin, rows, cluster = 0, clusters, kvHeads } = run;
  const permuted = range(kvHeads).map(() => random.shuffled(rows));
  const ends = range(kvHeads).map(() =>
    range(clusters - 1).map(() => empty ? 2 * random.below(rows / 2 + 1) : random.below(rows + 1)).sort((a, b) => a - b)
  );
  return {
    order: tensor("i32", perRow, (s, h, row) => inRun(s, row) ? begin + permuted[h][row - begin] : NOWHERE),
    offsets: tensor("i32", offsets, (s, h, c) => {
      if (!inUse(s, c) && !inUse(s, c - 1)) return NOWHERE;
      return begin + (c === cluster ? 0 : ends[h][c - cluster - 1] ?? rows);
    }),
  };
}

interface OverKeys extends Run {
  headDim: number;
  dtype?: KvDType;
}

function seedCentroids(row: OverKeys, random: Random): Args {
  const { centroids, perRow, perHead, inRun, run } = shapes(row);
  return {
    centroids: unwritten("f32", [...centroids, row.headDim]),
    labels: unwritten("i32", perRow),
    moved: unwritten("i32", perHead),
    keys: tensor(row.dtype ?? "f32", [...perRow, row.headDim], (s, _h, r) => inRun(s, r) ? random.normal() : NaN),
    run,
  };
}

interface Assign extends OverKeys {
  inputs?:
    | "all keys equal"
    | "labels right"
    | "first head at rest"
    | "equal centroids"
    | "zero centroid"
    | "NaN key"
    | "zero keys"
    | "long centroids";
}

function assign(row: Assign, random: Random): Args {
  const { begin, rows, cluster = 0, clusters, kvHeads, headDim, dtype = "f32", inputs } = row;
  const { centroids, perRow, inRun, inUse, run } = shapes(row);
  const equal = inputs === "all keys equal";
  const args = {
    labels: labelsOf(row, () => random.below(clusters + 1) - 1),
    moved: movedHeads(row, inputs === "first head at rest"),
    keys: tensor(dtype, [...perRow, headDim], (s, _h, r) => {
      if (!inRun(s, r) || (inputs === "NaN key" && r === begin + 1)) return NaN;
      return equal ? 0.75 : inputs === "zero keys" ? 0 : random.normal();
    }),
    centroids: tensor("f32", [...centroids, headDim], (s, _h, c) => {
      if (!inUse(s, c)) return NaN;
      if (inputs === "zero centroid" && c === cluster + 1) return 0;
      return equal ? 0.75 : random.normal() * (inputs === "long centroids" ? 10 ** random.below(6) : 1);
    }),
    work: work(kvHeads * (clusters + Math.ceil(rows / 256))),
    run,
  };
  const plane = args.centroids.data.length / kvHeads / centroids[0];
  if (inputs === "equal centroids") { // in pairs: the second of each can never win
    args.centroids.data.forEach((_, i, data) => {
      const c = Math.floor((i % plane) / headDim) - cluster;
      if (c > 0 && c < clusters && c % 2 === 1) data[i] = data[i - headDim];
    });
  }
  if (inputs === "labels right") {
    for (const h of range(kvHeads)) {
      for (const r of range(begin, begin + rows)) {
        const scores = range(clusters).map((c) =>
          closeness(at(args.keys, row.slot ?? 0, h, r), at(args.centroids, row.slot ?? 0, h, cluster + c))
        );
        at(args.labels, row.slot ?? 0, h, r)[0] = scores.indexOf(Math.max(...scores));
      }
    }
  }
  return args;
}

/** Another label is as good when its centroid is as close, to rounding. */
const closeCall: Ties = (args, name, element, got) => {
  const [labels, keys, centroids] = [args.labels, args.keys, args.centroids] as Plain[];
  const [slot, , , cluster, clusters] = args.run as Int32Array;
  if (name !== "labels" || got < 0 || got >= clusters) return false;
  const [, kvHeads, capacity] = labels.shape;
  const [h, row] = [Math.floor(element / capacity) % kvHeads, element % capacity];
  const key = at(keys, slot, h, row);
  const scores = range(clusters).map((c) => closeness(key, at(centroids, slot, h, cluster + c)));
  return scores[got] >= Math.max(...scores) - 1e-5 * Math.hypot(...key);
};

interface Group extends Run {
  inputs?: "one cluster takes all" | "first head at rest" | "moved not given";
}

function group(row: Group, random: Random): Args {
  const { perRow, offsets, run } = shapes(row);
  const one = row.inputs === "one cluster takes all";
  return {
    order: unwritten("i32", perRow),
    offsets: unwritten("i32", offsets),
    labels: labelsOf(row, () => one ? row.clusters - 1 : random.below(row.clusters)),
    moved: row.inputs === "moved not given" ? null : movedHeads(row, row.inputs === "first head at rest"),
    run,
  };
}

interface CentroidMeans extends OverKeys {
  inputs?: "empty clusters" | "first head at rest" | "moved not given" | "all keys equal" | "order of no rows" | "offsets outside";
}

function centroidMeans(row: CentroidMeans, random: Random): Args {
  const { centroids, perRow, inRun, run } = shapes(row);
  const groups = grouping(row, random, row.inputs === "empty clusters");
  const wrong = [-1, -(2 ** 31), 2 ** 31 - 1, row.begin - 1, row.begin + row.rows];
  if (row.inputs === "order of no rows") groups.order.data.forEach((_, i, data) => i % 3 || (data[i] = wrong[i % wrong.length]));
  if (row.inputs === "offsets outside") groups.offsets.data.forEach((_, i, data) => i % 4 || (data[i] = wrong[i % wrong.length]));
  return {
    centroids: unwritten("f32", [...centroids, row.headDim]),
    keys: tensor(
      row.dtype ?? "f32",
      [...perRow, row.headDim],
      (s, _h, r) => !inRun(s, r) ? NaN : row.inputs === "all keys equal" ? 0.7 : 1 + random.normal(),
    ),
    ...groups,
    moved: row.inputs === "moved not given" ? null : movedHeads(row, row.inputs === "first head at rest"),
    run,
  };
}

interface PermuteRows extends Run {
  dtype: KvDType | "i32";
  /** Width of a row; none: the tensor has rank 3. */
  width?: number;
}

function permuteRows(row: PermuteRows, random: Random): Args {
  const { perRow, run } = shapes(row);
  const { width, dtype, rows, kvHeads } = row;
  const bytes = dtype === "q8" ? width! + 4 : (width ?? 1) * (dtype === "f16" || dtype === "bf16" ? 2 : 4);
  return {
    tensor: tensor(dtype, width ? [...perRow, width] : perRow, dtype === "i32" ? () => random.below(1 << 20) : random.normal),
    order: grouping(row, random, false).order,
    work: work(Math.ceil((kvHeads * rows * bytes) / 4)),
    run,
  };
}

export const clusterCases: Case[] = [
  ...cases("seedCentroids", exact, seedCentroids, [
    { begin: 16, rows: 100, clusters: 7, kvHeads: 3, headDim: 32 },
    { begin: 0, rows: 5, clusters: 5, kvHeads: 1, headDim: 64, dtype: "f16" },
    { begin: 3, rows: 1, clusters: 1, kvHeads: 2, headDim: 20, dtype: "bf16" },
    { slots: 3, slot: 1, begin: 16, rows: 321, cluster: 9, clusters: 4, kvHeads: 2, headDim: 32, dtype: "f16" },
  ]),
  ...cases("seedCentroids", twice(naive("f32")), seedCentroids, [
    { begin: 16, rows: 37, clusters: 3, kvHeads: 2, headDim: 33, dtype: "q8" },
  ]),
  ...cases<Assign>("assign", exact, assign, [
    { begin: 16, rows: 100, clusters: 7, kvHeads: 3, headDim: 32 },
    { begin: 16, rows: 100, clusters: 7, kvHeads: 3, headDim: 32, dtype: "f16" },
    { begin: 16, rows: 100, clusters: 7, kvHeads: 3, headDim: 32, dtype: "bf16" },
    { begin: 16, rows: 100, clusters: 7, kvHeads: 3, headDim: 32, dtype: "q8" },
    { begin: 0, rows: 1, clusters: 1, kvHeads: 1, headDim: 8 },
    { begin: 5, rows: 257, clusters: 33, kvHeads: 2, headDim: 80, dtype: "f16" },
    { begin: 16, rows: 700, clusters: 9, kvHeads: 2, headDim: 128 },
    { begin: 1, rows: 256, clusters: 16, kvHeads: 1, headDim: 20 },
    { slots: 3, slot: 2, begin: 16, rows: 321, cluster: 5, clusters: 4, kvHeads: 2, headDim: 64 },
    { begin: 16, rows: 60, clusters: 5, kvHeads: 2, headDim: 32, inputs: "all keys equal" },
    { begin: 16, rows: 60, clusters: 5, kvHeads: 2, headDim: 32, inputs: "labels right" },
    { begin: 16, rows: 60, clusters: 5, kvHeads: 3, headDim: 32, inputs: "first head at rest" },
    { begin: 16, rows: 300, clusters: 40, kvHeads: 2, headDim: 32, inputs: "equal centroids" },
    { begin: 16, rows: 60, clusters: 3, kvHeads: 2, headDim: 32, inputs: "zero centroid" },
    { begin: 16, rows: 60, clusters: 5, kvHeads: 2, headDim: 32, inputs: "zero keys" },
    { begin: 16, rows: 60, clusters: 5, kvHeads: 2, headDim: 32, inputs: "NaN key" },
    { begin: 16, rows: 60, clusters: 5, kvHeads: 2, headDim: 32, dtype: "q8", inputs: "NaN key" },
    { begin: 16, rows: 200, clusters: 12, kvHeads: 2, headDim: 32, inputs: "long centroids" },
    { begin: 16, rows: 300, clusters: 37, kvHeads: 2, headDim: 64, dtype: "bf16" },
    { slots: 2, slot: 1, begin: 3, rows: 530, cluster: 4, clusters: 70, kvHeads: 3, headDim: 128, dtype: "bf16" },
    { begin: 16, rows: 300, clusters: 40, kvHeads: 2, headDim: 64, dtype: "bf16", inputs: "equal centroids" },
    { begin: 16, rows: 60, clusters: 5, kvHeads: 2, headDim: 64, dtype: "bf16", inputs: "all keys equal" },
    { begin: 16, rows: 60, clusters: 5, kvHeads: 2, headDim: 128, dtype: "bf16", inputs: "labels right" },
    { begin: 16, rows: 60, clusters: 5, kvHeads: 3, headDim: 64, dtype: "bf16", inputs: "first head at rest" },
    { begin: 16, rows: 60, clusters: 3, kvHeads: 2, headDim: 128, dtype: "bf16", inputs: "zero centroid" },
    { begin: 16, rows: 60, clusters: 5, kvHeads: 2, headDim: 64, dtype: "bf16", inputs: "NaN key" },
    { begin: 16, rows: 200, clusters: 12, kvHeads: 2, headDim: 128, dtype: "bf16", inputs: "long centroids" },
  ], closeCall),
  ...cases<Group>("group", exact, group, [
    { begin: 16, rows: 100, clusters: 7, kvHeads: 3 },
    { begin: 0, rows: 1, clusters: 1, kvHeads: 1 },
    { begin: 3, rows: 9, clusters: 40, kvHeads: 2 },
    { slots: 3, slot: 1, begin: 16, rows: 1000, cluster: 5, clusters: 13, kvHeads: 2 },
    { begin: 16, rows: 100, clusters: 7, kvHeads: 3, inputs: "one cluster takes all" },
    { begin: 16, rows: 100, clusters: 7, kvHeads: 3, inputs: "first head at rest" },
    { begin: 16, rows: 100, clusters: 7, kvHeads: 3, inputs: "moved not given" },
  ]),
  ...cases<CentroidMeans>("centroidMeans", exact, centroidMeans, [ // or equal keys would wander from cluster to cluster
    { begin: 16, rows: 1000, clusters: 3, kvHeads: 3, headDim: 32, inputs: "all keys equal" },
  ]),
  ...cases<CentroidMeans>("centroidMeans", twice(naive("f32")), centroidMeans, [
    { begin: 16, rows: 100, clusters: 7, kvHeads: 3, headDim: 32 },
    { begin: 16, rows: 100, clusters: 7, kvHeads: 3, headDim: 32, dtype: "f16" },
    { begin: 16, rows: 100, clusters: 7, kvHeads: 3, headDim: 32, dtype: "bf16" },
    { begin: 16, rows: 100, clusters: 7, kvHeads: 3, headDim: 32, dtype: "q8" },
    { begin: 0, rows: 1, clusters: 1, kvHeads: 1, headDim: 20 },
    { begin: 16, rows: 3000, clusters: 2, kvHeads: 1, headDim: 16, dtype: "f16" },
    { slots: 3, slot: 2, begin: 16, rows: 321, cluster: 5, clusters: 4, kvHeads: 2, headDim: 80 },
    { begin: 16, rows: 20, clusters: 30, kvHeads: 2, headDim: 33, inputs: "empty clusters" },
    { begin: 16, rows: 100, clusters: 7, kvHeads: 3, headDim: 32, inputs: "first head at rest" },
    { begin: 16, rows: 100, clusters: 7, kvHeads: 3, headDim: 32, inputs: "moved not given" },
    { begin: 16, rows: 100, clusters: 7, kvHeads: 3, headDim: 32, inputs: "order of no rows" },
    { begin: 16, rows: 100, clusters: 7, kvHeads: 3, headDim: 32, inputs: "offsets outside" },
  ]),
  ...cases<PermuteRows>("permuteRows", exact, permuteRows, [
    { begin: 16, rows: 100, clusters: 1, kvHeads: 3, dtype: "f32", width: 32 },
    { begin: 16, rows: 100, clusters: 1, kvHeads: 3, dtype: "f16", width: 32 },
    { begin: 16, rows: 100, clusters: 1, kvHeads: 3, dtype: "bf16", width: 33 },
    { begin: 16, rows: 100, clusters: 1, kvHeads: 3, dtype: "q8", width: 33 },
    { begin: 16, rows: 100, clusters: 1, kvHeads: 3, dtype: "i32" },
    { slots: 3, slot: 1, begin: 2, rows: 700, clusters: 1, kvHeads: 2, dtype: "f16", width: 64 },
    { slots: 3, slot: 1, begin: 2, rows: 700, clusters: 1, kvHeads: 2, dtype: "i32" },
    { begin: 0, rows: 1, clusters: 1, kvHeads: 1, dtype: "f32", width: 8 },
  ]),
];
