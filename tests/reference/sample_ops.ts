/** Reference of what lies between logits and the next token. */
import { r, sum } from "./numbers.ts";
import { at, type Plain, range } from "./plain.ts";

const ONE_WEIGHT = 2 ** 40;

/** Places in a row of options, as recallkv.h has them. */
export const places = {
  temperature: 0,
  topK: 1,
  topP: 2,
  minP: 3,
  repetition: 4,
  frequency: 5,
  presence: 6,
  seedHigh: 7,
  seedLow: 8,
  likeliest: 9,
  adjusts: 10,
} as const;
export const OPTIONS = 12;

function taking(rows: readonly number[], active: Plain | null): number[] {
  return rows.filter((i) => active === null || active.data[i] !== 0);
}

function optionsOf(options: Plain, row: number): Record<keyof typeof places, number> {
  const numbers = at(options, row);
  return Object.fromEntries(Object.entries(places).map(([name, place]) => [name, numbers[place]])) as Record<keyof typeof places, number>;
}

/** Ids of the numbers of a row by descending logit, ties by id. */
function byRank(row: Float64Array): number[] {
  return range(row.length).filter((id) => row[id] > -Infinity).sort((a, b) => row[b] - row[a] || a - b);
}

function likeliestId(row: Float64Array): number {
  const numbers = range(row.length).filter((id) => !Number.isNaN(row[id]));
  return numbers.length === 0 ? -1 : numbers.reduce((best, id) => row[id] > row[best] ? id : best);
}

function logprobOf(row: Float64Array, id: number): number {
  const shift = row[likeliestId(row)];
  const powers = [...row].filter((logit) => !Number.isNaN(logit)).map((logit) => r(Math.exp(r(logit - shift))));
  return r(r(row[id] - shift) - r(Math.log(sum(powers))));
}

export function tally(counts: Plain, token: Plain, active: Plain): void {
  const vocab = counts.shape[1];
  for (const s of taking(range(token.shape[0]), active)) {
    const id = token.data[s];
    if (id >= 0 && id < vocab) at(counts, s)[id] += 2;
  }
}

export function penalize(
  adjusted: Plain,
  logits: Plain,
  counts: Plain,
  bias: Plain,
  active: Plain | null,
  options: Plain,
  first: number,
  count: number,
): void {
  for (const i of taking(range(first, first + count), active)) {
    const { repetition, frequency, presence, adjusts } = optionsOf(options, i);
    if (!adjusts) continue;
    at(adjusted, i).set(
      at(logits, i).map((logit, id) => {
        const seen = at(counts, i)[id];
        const generated = seen >> 1;
        let x = logit;
        if (seen > 0) x = x > 0 ? r(x / repetition) : r(x * repetition);
        if (generated > 0) x = r(x - r(r(frequency * generated) + presence));
        return r(x + at(bias, i)[id]);
      }),
    );
  }
}

/** 64 random bits of a key and a counter: Philox 2x32 of ten rounds. */
export function philox(key: number, counter: number): bigint {
  let [low, high, k] = [BigInt(counter >>> 0), 0n, BigInt(key >>> 0)];
  for (let round = 0; round < 10; round++) {
    const product = 0xd256d193n * low;
    [low, high] = [(product >> 32n) ^ k ^ high, product & 0xffffffffn];
    k = (k + 0x9e3779b9n) & 0xffffffffn;
  }
  return low << 32n | high;
}

/** What may be drawn of a row, with its weight. */
export function urn(row: Float64Array, options: Pick<Record<keyof typeof places, number>, "temperature" | "topK" | "topP" | "minP">) {
  const { temperature, topK, topP, minP } = options;
  const order = byRank(row);
  const shift = r(row[order[0]] / temperature);
  const weights = new Map(order.map((id) => [id, BigInt(Math.floor(r(Math.exp(r(r(row[id] / temperature) - shift))) * ONE_WEIGHT))]));
  let held = topK > 0 ? order.slice(0, topK) : order;
  if (topP < 1) {
    const all = held.reduce((total, id) => total + weights.get(id)!, 0n);
    const wanted = BigInt(Math.ceil(topP * Number(all)));
    let reached = 0n;
    held = held.filter((id, k) => {
      const isNeeded = k === 0 || reached < wanted;
      reached += weights.get(id)!;
      return isNeeded;
    });
  }
  const lightest = BigInt(Math.floor(minP * ONE_WEIGHT));
  return held.filter((id) => weights.get(id)! >= lightest).map((id) => ({ id, weight: weights.get(id)! })).sort((a, b) => a.id - b.id);
}

export function sample(
  token: Plain,
  logprob: Plain,
  logits: Plain,
  adjusted: Plain,
  active: Plain | null,
  position: Plain,
  options: Plain,
  first: number,
  count: number,
): void {
  for (const i of taking(range(first, first + count), active)) {
    const chosen = optionsOf(options, i);
    const row = chosen.adjusts ? at(adjusted, i) : at(logits, i);
    let id = likeliestId(row);
    if (id >= 0 && chosen.temperature > 0 && Number.isFinite(r(row[id] / chosen.temperature))) {
      const held = urn(row, chosen);
      const total = held.reduce((sum, { weight }) => sum + weight, 0n);
      let left = philox(chosen.seedHigh * 65536 + chosen.seedLow, position.data[i]) * total >> 64n;
      id = held.find(({ weight }) => (left -= weight) < 0n)!.id;
    }
    token.data[i] = id;
    logprob.data[i] = id < 0 ? NaN : logprobOf(at(logits, i), id);
  }
}

export function likeliest(
  tokens: Plain,
  logprobs: Plain,
  logits: Plain,
  active: Plain | null,
  options: Plain,
  first: number,
  count: number,
): void {
  for (const i of taking(range(first, first + count), active)) {
    const row = at(logits, i);
    const order = byRank(row);
    for (const k of range(Math.min(tokens.shape[1], optionsOf(options, i).likeliest))) {
      at(tokens, i)[k] = order[k] ?? -1;
      at(logprobs, i)[k] = k < order.length ? logprobOf(row, order[k]) : NaN;
    }
  }
}
