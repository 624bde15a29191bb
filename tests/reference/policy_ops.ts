/** Ops that only some policies use, as ffi/recallkv.h states them. */
import { membersOf } from "./cluster_ops.ts";
import { addScaled, dot, logSumExp, r, softmax, sum } from "./numbers.ts";
import { addToCounter, at, type Layer, type Plain, range, type Rows, STEP } from "./plain.ts";

function activeSlots(active: Plain): number[] {
  return range(active.shape[0]).filter((s) => active.data[s] !== 0);
}

/** The row of a tensor with `n` rows per slot that head `g` of `heads` uses. */
const rowOf = (g: number, heads: number, n: number) => Math.floor(g / (heads / n));

function logitOf(q: Float64Array, key: Float64Array, layer: Layer): number {
  const logit = r(dot(q, key) * layer.scale);
  return layer.softCap > 0 ? r(layer.softCap * r(Math.tanh(r(logit / layer.softCap)))) : logit;
}

export function attendEstimates(
  attended: Plain,
  lse: Plain,
  q: Plain,
  rows: Rows,
  layer: Layer,
  centroids: Plain,
  means: Plain,
  bias: Plain,
  _work: Plain,
): void {
  const { heads, kvHeads } = layer;
  for (const s of activeSlots(rows.active)) {
    for (const g of range(heads)) {
      const biases = at(bias, s, rowOf(g, heads, bias.shape[1]));
      const left = range(biases.length).filter((c) => biases[c] > -Infinity);
      const h = rowOf(g, heads, kvHeads);
      const held = at(lse, s, g);
      const logits = Float64Array.of(held[0], ...left.map((c) => r(logitOf(at(q, s, g), at(centroids, s, h, c), layer) + biases[c])));
      const shares = softmax(logits);
      const out = at(attended, s, g).map((x) => held[0] === -Infinity ? 0 : r(x * shares[0]));
      left.forEach((c, j) => addScaled(out, shares[j + 1], at(means, s, h, c)));
      at(attended, s, g).set(out);
      held[0] = logSumExp(logits);
    }
    const estimated = at(bias, s).filter((x) => x > -Infinity).length;
    addToCounter(at(rows.attended, rows.layer, s).subarray(6), Math.floor(estimated / (bias.shape[1] / kvHeads)));
  }
}

export function radius(radius: Plain, keys: Plain, centroids: Plain, order: Plain, offsets: Plain, run: Int32Array): void {
  const [slot, , , cluster, clusters] = run;
  for (const h of range(keys.shape[1])) {
    for (const c of range(cluster, cluster + clusters)) {
      const members = membersOf(order, offsets, h, c, run);
      const centroid = at(centroids, slot, h, c);
      const distances = members.map((row) => {
        const apart = at(keys, slot, h, row).map((x, i) => r(x - centroid[i]));
        return r(Math.sqrt(dot(apart, apart)));
      });
      at(radius, slot, h, c)[0] = Math.max(0, ...distances);
    }
  }
}

export function fillWhole(index: Plain, bias: Plain, order: Plain, offsets: Plain, count: Plain, active: Plain): void {
  const [, n, budget] = index.shape;
  for (const s of activeSlots(active)) {
    for (const row of range(n)) {
      const starts = at(offsets, s, rowOf(row, n, offsets.shape[1]));
      const size = (c: number) => c < count.data[s] ? starts[c + 1] - starts[c] : 0;
      const biases = at(bias, s, row);
      biases.forEach((_, c) => biases[c] = size(c) > 0 ? r(Math.log(size(c))) : -Infinity);
      const rows: number[] = [];
      for (const c of at(order, s, row)) {
        if (c < 0 || size(c) <= 0 || rows.length + size(c) > budget) continue;
        rows.push(...range(starts[c], starts[c + 1]));
        biases[c] = -Infinity;
      }
      at(index, s, row).fill(-1).set(rows);
    }
  }
}

export function pageBounds(bounds: Plain, rows: Rows, page: number, slot: number, begin: number, count: number): void {
  const rowEnd = at(rows.rowEnd, rows.layer, slot)[0];
  for (const h of range(bounds.shape[1])) {
    for (const p of range(Math.floor(begin / page), Math.ceil((begin + count) / page))) {
      const held = range(p * page, Math.min((p + 1) * page, rowEnd)).map((row) => at(rows.keys, slot, h, row));
      if (held.length === 0) continue;
      const [least, largest] = [at(bounds, slot, h, p, 0), at(bounds, slot, h, p, 1)];
      for (const j of range(least.length)) {
        const channel = held.map((key) => key[j]).filter((x) => !Number.isNaN(x));
        least[j] = Math.min(...channel);
        largest[j] = Math.max(...channel);
      }
    }
  }
}

export function pageScores(scores: Plain, q: Plain, bounds: Plain, rows: Rows, scale: number, page: number, sink: number): void {
  const [heads, kvHeads, n] = [q.shape[1], bounds.shape[1], scores.shape[1]];
  for (const s of activeSlots(rows.active)) {
    const tailBegin = at(rows.tailBegin, rows.layer, s)[0];
    const pages = range(bounds.shape[2]).filter((p) => p * page >= sink && (p + 1) * page <= tailBegin);
    for (const row of range(n)) {
      const best = (g: number, factor: number) =>
        Float64Array.from(pages, (p) => {
          const [least, largest] = [at(bounds, s, rowOf(row, n, kvHeads), p, 0), at(bounds, s, rowOf(row, n, kvHeads), p, 1)];
          return r(sum([...at(q, s, g)].map((x, j) => Math.max(r(x * least[j]), r(x * largest[j])))) * factor);
        });
      const shares = range((row * heads) / n, ((row + 1) * heads) / n).map((g) =>
        n === heads && n !== kvHeads ? best(g, 1) : softmax(best(g, scale))
      );
      at(scores, s, row).fill(-Infinity);
      pages.forEach((p, i) => at(scores, s, row, p)[0] = sum(shares.map((share) => share[i])));
    }
  }
}

export function attentionMass(
  mass: Plain,
  q: Plain,
  lse: Plain,
  weights: Plain | null,
  rows: Rows,
  layer: Layer,
  slot: number,
  count: number,
  first: number,
): void {
  const { heads, kvHeads, window } = layer;
  for (const i of range(first, count)) {
    const s = slot === STEP ? i : slot;
    if (slot === STEP && rows.active.data[s] === 0) continue;
    const rowEnd = at(rows.rowEnd, rows.layer, s)[0];
    const self = slot === STEP ? rowEnd - 1 : rowEnd - count + i;
    for (const g of range(heads)) {
      const h = rowOf(g, heads, kvHeads);
      const position = at(rows.rowPosition, s, h);
      const sums = at(mass, s, rowOf(g, heads, mass.shape[1]));
      for (const row of range(self + 1)) {
        if (window > 0 && position[self] - position[row] >= window) continue;
        const share = r(Math.exp(r(logitOf(at(q, i, g), at(rows.keys, s, h, row), layer) - at(lse, i, g)[0])));
        sums[row] = r(sums[row] + r(share * (weights ? weights.data[i] : 1)));
      }
    }
  }
}

export function massRates(rates: Plain, mass: Plain, rows: Rows, slot: number): void {
  const [n, kvHeads] = [mass.shape[1], rows.keys.shape[1]];
  for (const s of slot === STEP ? activeSlots(rows.active) : [slot]) {
    const rowEnd = at(rows.rowEnd, rows.layer, s)[0];
    for (const row of range(n)) {
      const position = at(rows.rowPosition, s, rowOf(row, n, kvHeads));
      for (const j of range(rowEnd)) at(rates, s, row, j)[0] = r(at(mass, s, row, j)[0] / (position[rowEnd - 1] - position[j] + 1));
    }
  }
}

export function poolScores(pooled: Plain, scores: Plain, slot: number, begin: number, end: number, kernel: number, mode: number): void {
  const share = scores.shape[1] / pooled.shape[1];
  for (const row of range(pooled.shape[1])) {
    const joined = range(end).map((i) => i < begin ? NaN : sum(range(share).map((j) => at(scores, slot, row * share + j, i)[0])));
    for (const i of range(begin, end)) {
      const chunk = begin + Math.floor((i - begin) / kernel) * kernel;
      const around = (mode === 2 ? range(chunk, chunk + kernel) : range(i - (kernel - 1) / 2, i + (kernel + 1) / 2))
        .filter((j) => j >= begin && j < end).map((j) => joined[j]);
      at(pooled, slot, row, i)[0] = mode === 1 ? Math.max(...around) : r(sum(around) / (mode === 2 ? around.length : kernel));
    }
  }
}

export function keep(keep: Plain, scores: Plain, slot: number, begin: number, end: number, count: number, rowEnd: number): void {
  for (const row of range(keep.shape[1])) {
    const score = (i: number) => {
      const x = at(scores, slot, row, i)[0];
      return x > -Infinity ? x : -Infinity;
    };
    const best = range(begin, end).sort((a, b) => score(a) === score(b) ? a - b : score(b) > score(a) ? 1 : -1).slice(0, count);
    at(keep, slot, row).fill(-1).set([...range(begin), ...best.sort((a, b) => a - b), ...range(end, rowEnd)]);
  }
}

export function compact(rows: Rows, also: Plain | null, keep: Plain, slot: number, count: number): void {
  const kvHeads = rows.keys.shape[1];
  const [rowEnd, tailBegin] = [at(rows.rowEnd, rows.layer, slot), at(rows.tailBegin, rows.layer, slot)];
  for (const h of range(kvHeads)) {
    const kept = at(keep, slot, rowOf(h, kvHeads, keep.shape[1]));
    for (const tensor of [rows.keys, rows.values, rows.rowPosition, ...(also ? [also] : [])]) {
      for (const i of range(count)) at(tensor, slot, h, i).set(at(tensor, slot, h, kept[i]));
    }
    if (also) at(also, slot, h).fill(0, count, rowEnd[0]);
  }
  rowEnd[0] = count;
  tailBegin[0] = Math.min(tailBegin[0], count);
}

export function pickRows(tensor: Plain, keep: Plain, slot: number, count: number): void {
  for (const i of range(count)) at(tensor, i).set(at(tensor, at(keep, slot, 0, i)[0]));
}

export function evict(rows: Rows, mass: Plain, scores: Plain, sink: number, recent: number, budget: number): void {
  for (const s of activeSlots(rows.active)) {
    const [rowEnd, tailBegin] = [at(rows.rowEnd, rows.layer, s), at(rows.tailBegin, rows.layer, s)];
    if (rowEnd[0] <= budget) continue;
    const newest = rowEnd[0] - 1;
    for (const h of range(rows.keys.shape[1])) {
      const [position, score] = [at(rows.rowPosition, s, h), at(scores, s, h).slice()];
      const old = range(sink, newest).filter((row) => position[newest] - position[row] >= recent);
      const worth = (row: number) => score[row] > -Infinity ? score[row] : -Infinity;
      const victim = old.reduce((worst, row) => worst === newest || worth(row) < worth(worst) ? row : worst, newest);
      for (const tensor of [rows.keys, rows.values, rows.rowPosition]) at(tensor, s, h, victim).set(at(tensor, s, h, newest));
      at(mass, s, h, victim)[0] = at(mass, s, h, newest)[0];
      at(mass, s, h, newest)[0] = 0;
    }
    rowEnd[0] = newest;
    tailBegin[0] = Math.min(tailBegin[0], newest);
  }
}
