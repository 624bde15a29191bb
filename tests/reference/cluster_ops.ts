/**
 * Ops of clustering, as ffi/recallkv.h states them: over all KV heads of one slot.
 * run = [slot, begin, rows, cluster, clusters]: rows [begin, begin + rows) become clusters [cluster, cluster + clusters).
 */
import { dot, r } from "./numbers.ts";
import { at, type Plain, range } from "./plain.ts";

export function seedCentroids(centroids: Plain, labels: Plain, moved: Plain, keys: Plain, run: Int32Array): void {
  const [slot, begin, rows, cluster, clusters] = run;
  for (const h of range(keys.shape[1])) {
    for (const c of range(clusters)) {
      at(centroids, slot, h, cluster + c).set(at(keys, slot, h, begin + Math.floor(((c + 0.5) * rows) / clusters)));
    }
    at(labels, slot, h).subarray(begin, begin + rows).fill(-1);
    at(moved, slot, h)[0] = 1;
  }
}

/** Cosine of a key and a centroid, times the key's length: what clusters are compared by. */
export function closeness(key: Float64Array, centroid: Float64Array): number {
  const length = r(Math.sqrt(dot(centroid, centroid)));
  return length === 0 ? 0 : r(dot(key, centroid) * r(1 / length));
}

/** Heads of a slot whose labels still change; without `moved`, all. */
function restless(kvHeads: number, moved: Plain | null, slot: number): number[] {
  return range(kvHeads).filter((h) => moved === null || at(moved, slot, h)[0] !== 0);
}

export function assign(labels: Plain, moved: Plain, keys: Plain, centroids: Plain, _work: Plain, run: Int32Array): void {
  const [slot, begin, rows, cluster, clusters] = run;
  for (const h of restless(keys.shape[1], moved, slot)) {
    at(moved, slot, h)[0] = 0;
    for (const row of range(begin, begin + rows)) {
      const key = at(keys, slot, h, row);
      const scores = range(clusters).map((c) => closeness(key, at(centroids, slot, h, cluster + c)));
      const label = scores.reduce((best, score, c) => (score > scores[best] ? c : best), 0);
      const held = at(labels, slot, h, row);
      if (held[0] !== label) at(moved, slot, h)[0] = 1;
      held[0] = label;
    }
  }
}

export function group(order: Plain, offsets: Plain, labels: Plain, moved: Plain | null, run: Int32Array): void {
  const [slot, begin, rows, cluster, clusters] = run;
  for (const h of restless(labels.shape[1], moved, slot)) {
    let place = begin;
    for (const c of range(clusters)) {
      at(offsets, slot, h, cluster + c)[0] = place;
      for (const row of range(begin, begin + rows)) if (at(labels, slot, h, row)[0] === c) at(order, slot, h, place++)[0] = row;
    }
    at(offsets, slot, h, cluster + clusters)[0] = place;
  }
}

/** Rows of cluster c: offsets are cut to the run, and an entry that names no row of it counts as its first. */
export function membersOf(order: Plain, offsets: Plain, h: number, c: number, [slot, begin, rows]: Int32Array): number[] {
  const [from, to] = [c, c + 1].map((i) => Math.max(begin, Math.min(begin + rows, at(offsets, slot, h, i)[0])));
  return [...at(order, slot, h).subarray(from, Math.max(from, to))].map((row) => row >= begin && row < begin + rows ? row : begin);
}

export function centroidMeans(centroids: Plain, keys: Plain, order: Plain, offsets: Plain, moved: Plain | null, run: Int32Array): void {
  const [slot, , , cluster, clusters] = run;
  for (const h of restless(keys.shape[1], moved, slot)) {
    for (const c of range(cluster, cluster + clusters)) {
      const members = membersOf(order, offsets, h, c, run);
      if (members.length === 0) continue;
      const total = new Float64Array(keys.shape[3]);
      for (const row of members) at(keys, slot, h, row).forEach((value, i) => total[i] = r(total[i] + value));
      at(centroids, slot, h, c).set(total.map((value) => r(value / members.length)));
    }
  }
}

export function permuteRows(tensor: Plain, order: Plain, _work: Plain, run: Int32Array): void {
  const [slot, begin, rows] = run;
  const before: Plain = { ...tensor, data: tensor.data.slice() };
  for (const h of range(tensor.shape[1])) {
    for (const row of range(begin, begin + rows)) at(tensor, slot, h, row).set(at(before, slot, h, at(order, slot, h, row)[0]));
  }
}
