/** Ops of selection and of moving rows, as ffi/recallkv.h states them. */
import { dot, r, softmax, sum } from "./numbers.ts";
import { at, type Plain, range, type Rows } from "./plain.ts";

function activeSlots(active: Plain): number[] {
  return range(active.shape[0]).filter((s) => active.data[s] !== 0);
}

export function centroidScores(
  scores: Plain,
  q: Plain,
  centroids: Plain,
  radius: Plain | null,
  offsets: Plain,
  count: Plain,
  active: Plain,
  scale: number,
  bound: number,
): void {
  const heads = q.shape[1];
  const kvHeads = centroids.shape[1];
  const clusters = range(centroids.shape[2]);
  const perHead = scores.shape[1] === heads && heads !== kvHeads;
  for (const s of activeSlots(active)) {
    for (const h of range(scores.shape[1])) {
      const kvHead = perHead ? Math.floor(h / (heads / kvHeads)) : h;
      const ranked = clusters.map((c) => c < count.data[s] && at(offsets, s, kvHead, c)[0] < at(offsets, s, kvHead, c + 1)[0]);
      const logit = (query: Float64Array, c: number) => {
        const toCentre = dot(query, at(centroids, s, kvHead, c));
        return radius ? r(toCentre + r(r(bound * r(Math.sqrt(dot(query, query)))) * at(radius, s, kvHead, c)[0])) : toCentre;
      };
      const dots = (g: number, factor: number) =>
        Float64Array.from(clusters, (c) => ranked[c] ? r(logit(at(q, s, g), c) * factor) : -Infinity);
      if (perHead) {
        at(scores, s, h).set(dots(h, 1));
        continue;
      }
      const shares = range(h * (heads / kvHeads), (h + 1) * (heads / kvHeads)).map((g) => softmax(dots(g, scale)));
      at(scores, s, h).set(clusters.map((c) => ranked[c] ? sum(shares.map((share) => share[c])) : -Infinity));
    }
  }
}

export function topk(order: Plain, scores: Plain, active: Plain): void {
  const k = order.shape[2];
  for (const s of activeSlots(active)) {
    for (const h of range(scores.shape[1])) {
      const row = at(scores, s, h);
      const ranked = range(row.length).filter((id) => row[id] > -Infinity).sort((a, b) =>
        row[a] === row[b] ? a - b : row[b] > row[a] ? 1 : -1
      );
      at(order, s, h).fill(-1).set(ranked.slice(0, k));
    }
  }
}

export function fillBudget(index: Plain, order: Plain, offsets: Plain, active: Plain): void {
  const [, n, budget] = index.shape;
  for (const s of activeSlots(active)) {
    for (const h of range(n)) {
      const kvHead = Math.floor(h / (n / offsets.shape[1]));
      const rows: number[] = [];
      for (const c of at(order, s, h)) if (c >= 0) rows.push(...range(at(offsets, s, kvHead, c)[0], at(offsets, s, kvHead, c + 1)[0]));
      at(index, s, h).fill(-1).set(rows.slice(0, budget));
    }
  }
}

export function gatherRows(to: Plain, from: Plain, index: Plain): void {
  const [slots, kvHeads, budget] = to.shape;
  for (const s of range(slots)) {
    for (const h of range(kvHeads)) {
      for (const i of range(budget)) {
        const row = at(index, s, h, i)[0];
        if (row < 0) at(to, s, h, i).fill(0);
        else at(to, s, h, i).set(at(from, s, h, row));
      }
    }
  }
}

export function setTail(rows: Rows, sink: number, width: number): void {
  for (const s of activeSlots(rows.active)) {
    const tailBegin = at(rows.tailBegin, rows.layer, s);
    tailBegin[0] = Math.max(tailBegin[0], sink, at(rows.rowEnd, rows.layer, s)[0] - width);
  }
}

export function copy(to: Plain, toRow: number, from: Plain, fromRow: number, count: number): void {
  const width = to.shape.length === 1 ? 1 : to.shape[to.shape.length - 1];
  to.data.set(from.data.subarray(fromRow * width, (fromRow + count) * width), toRow * width);
}
