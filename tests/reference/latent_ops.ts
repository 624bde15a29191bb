/** Ops over keys in fewer channels, as ffi/recallkv.h states them. */
import { addScaled, dot, r, rotate, softmax, sum } from "./numbers.ts";
import { at, type Plain, range, type Rows, STEP } from "./plain.ts";

function activeSlots(active: Plain): number[] {
  return range(active.shape[0]).filter((s) => active.data[s] !== 0);
}

/** x with the rotation of row `row` undone: turned by the opposite angle, and divided by what cosines and sines were multiplied with. */
function turnedBack(x: Float64Array, rotations: Plain | null, row: number): Float64Array {
  if (!rotations) return x;
  const half = rotations.shape[2];
  const [cos, sin] = [at(rotations, row, 0), at(rotations, row, 1)];
  const turned = x.slice();
  for (const j of range(half)) {
    const square = r(r(cos[j] * cos[j]) + r(sin[j] * sin[j]));
    turned[j] = r(r(r(x[j] * cos[j]) + r(x[j + half] * sin[j])) / square);
    turned[j + half] = r(r(r(x[j + half] * cos[j]) - r(x[j] * sin[j])) / square);
  }
  return turned;
}

/** Rows [first, first + width) of a basis, for a slot. */
function basisRow(basis: Plain, slot: number, unit: number, w: number): Float64Array {
  return at(basis, basis.shape[0] === 1 ? 0 : slot, unit, w);
}

/** x . basis, x lying at row `first` of the basis. */
function projected(x: Float64Array, basis: Plain, slot: number, unit: number, first = 0): Float64Array {
  const channels = new Float64Array(basis.shape[3]);
  x.forEach((value, w) => addScaled(channels, value, basisRow(basis, slot, unit, first + w)));
  return channels;
}

export function projectRows(latents: Plain, rows: Rows, rotations: Plain | null, basis: Plain, slot: number, count: number): void {
  const units = latents.shape[1];
  const share = rows.keys.shape[1] / units;
  for (const i of range(count)) {
    const s = slot === STEP ? i : slot;
    if (slot === STEP && rows.active.data[s] === 0) continue;
    const rowEnd = at(rows.rowEnd, rows.layer, s)[0];
    const row = slot === STEP ? rowEnd - 1 : rowEnd - count + i;
    for (const unit of range(units)) {
      const key = range(share).flatMap((h) => [...turnedBack(at(rows.keys, s, unit * share + h, row), rotations, i)]);
      at(latents, s, unit, row).set(projected(Float64Array.from(key), basis, s, unit));
    }
  }
}

export function latentScores(
  scores: Plain,
  q: Plain,
  latents: Plain,
  basis: Plain,
  rotations: Plain | null,
  rows: Rows,
  scale: number,
  sink: number,
): void {
  const [, heads, headDim] = q.shape;
  const [n, units, kvHeads] = [scores.shape[1], latents.shape[1], rows.keys.shape[1]];
  const share = kvHeads / units;
  for (const s of activeSlots(rows.active)) {
    const between = range(sink, Math.min(at(rows.tailBegin, rows.layer, s)[0], at(rows.rowEnd, rows.layer, s)[0]));
    for (const row of range(n)) {
      const group = range((row * heads) / n, ((row + 1) * heads) / n);
      const query = (g: number) => {
        const kvHead = Math.floor(g / (heads / kvHeads));
        const x = turnedBack(at(q, s, g), rotations, s);
        return projected(x, basis, s, Math.floor(kvHead / share), (kvHead % share) * headDim);
      };
      const unit = Math.floor(group[0] / (heads / units));
      const dots = (x: Float64Array) => Float64Array.from(between, (i) => dot(x, at(latents, s, unit, i).subarray(0, x.length)));
      const joined = () => {
        const total = new Float64Array(basis.shape[3]);
        for (const g of group) addScaled(total, 1, query(g));
        return dots(total);
      };
      const ranked = units < kvHeads || n !== kvHeads
        ? joined()
        : group.map((g) => softmax(dots(query(g)).map((x) => r(x * scale)))).reduce((a, b) => a.map((x, i) => r(x + b[i])));
      at(scores, s, row).fill(-Infinity).set(ranked, sink);
    }
  }
}

export function trimIndex(index: Plain, scores: Plain, active: Plain, alpha: number): void {
  const n = index.shape[1];
  for (const s of activeSlots(active)) {
    const near = range(n).map((h) => {
      const rows = [...at(index, s, h)];
      const score = (row: number) => row < 0 ? -Infinity : at(scores, s, h, row)[0];
      const end = rows.findIndex((row) => !(score(row) > Math.fround(score(rows[0]) - alpha)));
      return end < 0 ? rows.length : end;
    });
    const count = Math.floor((sum(near) + Math.floor(n / 2)) / n);
    for (const h of range(n)) at(index, s, h).fill(-1, count);
  }
}

export function reconstruct(keys: Plain, latents: Plain, basis: Plain, index: Plain, rotations: Plain | null, rows: Rows): void {
  const [, kvHeads, , headDim] = keys.shape;
  const units = index.shape[1];
  const share = kvHeads / units;
  for (const s of activeSlots(rows.active)) {
    for (const h of range(kvHeads)) {
      const unit = Math.floor(h / share);
      at(index, s, unit).forEach((row, i) => {
        if (row < 0 || row >= at(rows.rowEnd, rows.layer, s)[0]) return at(keys, s, h, i).fill(0);
        const latent = at(latents, s, unit, row);
        const key = Float64Array.from(range(headDim), (w) => dot(latent, basisRow(basis, s, unit, (h % share) * headDim + w)));
        const position = at(rows.rowPosition, s, h, row)[0];
        at(keys, s, h, i).set(rotations ? rotate(key, at(rotations, position, 0), at(rotations, position, 1)) : key);
      });
    }
  }
}

export function channelMass(mass: Plain, q: Plain, basis: Plain, slot: number, count: number): void {
  const [, heads] = q.shape;
  const kvHeads = mass.shape[1];
  for (const i of range(count)) {
    for (const g of range(heads)) {
      const h = Math.floor(g / (heads / kvHeads));
      const weights = projected(at(q, i, g), basis, slot, h);
      at(mass, slot, h).forEach((x, c, all) => all[c] = r(x + Math.abs(weights[c])));
    }
  }
}

export function pickChannels(to: Plain, basis: Plain, order: Plain, slot: number): void {
  const [, units, width] = to.shape;
  for (const unit of range(units)) {
    for (const w of range(width)) {
      at(to, slot, unit, w).set([...at(order, slot, unit)].map((c) => c < 0 ? 0 : basisRow(basis, slot, unit, w)[c]));
    }
  }
}
