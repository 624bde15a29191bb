/** The draw: random numbers are those of the paper's vectors, frequencies are those of an independent computation, and seeds decide alone. */
import { assert, assertEquals, assertLess } from "@std/assert";
import { describe, it } from "node:test";
import { open } from "../../lib/device.ts";
import { philox } from "../reference/sample_ops.ts";
import { random } from "../cases/random.ts";

const device = await open("cpu", { threads: 2 });
const DRAWS = 40_000;
const VOCAB = 24;

interface Settings {
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  repetition: number;
  frequency: number;
  presence: number;
}
const plain: Settings = { temperature: 1, topK: 0, topP: 1, minP: 0, repetition: 1, frequency: 0, presence: 0 };

/** Tokens drawn at positions 0, 1, ... of one row of logits, in batches of 64 rows. */
async function draws(logits: number[], settings: Settings, seed: number, counts?: number[], bias?: number[]): Promise<Int32Array> {
  using arena = device.arena(1 << 26);
  const k = device.kernels;
  const rows = 64;
  const repeated = (values: ArrayLike<number>) => Float32Array.from({ length: rows * VOCAB }, (_, i) => values[i % VOCAB]);
  const [raw, adjusted, added] = [0, 1, 2].map(() => arena.tensor("f32", [rows, VOCAB]));
  raw.write(repeated(logits));
  added.write(repeated(bias ?? new Array(VOCAB).fill(0)));
  const tally = arena.tensor("i32", [rows, VOCAB]);
  tally.write(Int32Array.from(repeated(counts ?? new Array(VOCAB).fill(0))));
  const options = arena.tensor("f32", [rows, 12]);
  const { temperature, topK, topP, minP, repetition, frequency, presence } = settings;
  const numbers = [temperature, topK, topP, minP, repetition, frequency, presence, Math.floor(seed / 65536), seed % 65536, 0, 1, 0];
  options.write(Float32Array.from({ length: rows * 12 }, (_, i) => numbers[i % 12]));
  const [token, position] = [arena.tensor("i32", [rows]), arena.tensor("i32", [rows])];
  const logprob = arena.tensor("f32", [rows]);
  const drawn = arena.tensor("i32", [DRAWS]);
  k.penalize(adjusted, raw, tally, added, null, options, 0, rows);
  for (let at = 0; at < DRAWS; at += rows) {
    position.write(Int32Array.from({ length: rows }, (_, i) => at + i));
    k.sample(token, logprob, raw, adjusted, null, position, options, 0, rows);
    k.copy(drawn, at, token, 0, rows);
  }
  return await drawn.read() as Int32Array;
}

/** Probabilities, written down from the definitions of the methods and nothing else. */
function probabilities(logits: number[], settings: Settings, counts: number[] = [], bias: number[] = []): number[] {
  const { temperature, topK, topP, minP, repetition, frequency, presence } = settings;
  const changed = logits.map((logit, id) => {
    const generated = Math.floor((counts[id] ?? 0) / 2);
    const once = counts[id] ? (logit > 0 ? logit / repetition : logit * repetition) : logit;
    return (once - generated * frequency - (generated > 0 ? presence : 0) + (bias[id] ?? 0)) / temperature;
  });
  const normal = (values: number[]) => {
    const total = values.reduce((a, b) => a + b, 0);
    return values.map((value) => value / total);
  };
  let p = normal(changed.map((x) => Math.exp(x - Math.max(...changed))));
  const order = p.map((_, id) => id).sort((a, b) => p[b] - p[a] || a - b);
  const keep = (ids: number[]) => p = normal(p.map((value, id) => ids.includes(id) ? value : 0));
  if (topK > 0) keep(order.slice(0, topK));
  if (topP < 1) {
    let mass = 0;
    keep(order.filter((id) => mass < topP && (mass += p[id]) > 0));
  }
  const largest = Math.max(...p);
  keep(order.filter((id) => p[id] >= minP * largest));
  return p;
}

/** Chi-square of counts against probabilities, with its degrees of freedom; impossible ones must not occur. */
function chiSquare(drawn: Int32Array, p: number[]): { statistic: number; freedom: number } {
  const seen = new Array<number>(VOCAB).fill(0);
  for (const id of drawn) seen[id]++;
  let [statistic, freedom] = [0, -1];
  p.forEach((probability, id) => {
    if (probability === 0) return assertEquals(seen[id], 0, `token ${id} is cut, and was drawn`);
    statistic += (seen[id] - probability * DRAWS) ** 2 / (probability * DRAWS);
    freedom++;
  });
  return { statistic, freedom };
}

/** The value that chi-square exceeds once in 10,000 (Wilson and Hilferty). */
const limit = (freedom: number) => freedom * (1 - 2 / (9 * freedom) + 3.719 * Math.sqrt(2 / (9 * freedom))) ** 3;

const { normal, below } = random("distribution");
const logits = Array.from({ length: VOCAB }, () => 1.2 * normal());
const counts = Array.from({ length: VOCAB }, () => below(5));
const bias = Array.from({ length: VOCAB }, () => below(2));

describe("sampling", () => {
  it("takes its random numbers from Philox 2x32-10, whose vectors the paper's authors give", () => {
    assertEquals(philox(0, 0), 0xff1dae59_6cd10df2n);
  });

  const settings: [string, Partial<Settings>, number[]?, number[]?][] = [
    ["temperature 1", {}],
    ["temperature 0.5", { temperature: 0.5 }],
    ["temperature 3", { temperature: 3 }],
    ["top-k", { topK: 6 }],
    ["top-p", { topP: 0.7 }],
    ["min-p", { minP: 0.2 }],
    ["all cuts together", { temperature: 1.4, topK: 12, topP: 0.9, minP: 0.1 }],
    ["repetition penalty", { repetition: 1.5 }, counts],
    ["frequency and presence penalty", { frequency: 0.4, presence: 0.6 }, counts],
    ["logit bias", {}, undefined, bias],
    ["everything", { temperature: 0.8, topP: 0.95, repetition: 1.2, frequency: 0.1, presence: 0.2 }, counts, bias],
  ];
  for (const [name, some, tally, added] of settings) {
    it(`draws as often as it should: ${name}`, async () => {
      const chosen = { ...plain, ...some };
      const drawn = await draws(logits, chosen, 20261, tally, added);
      const { statistic, freedom } = chiSquare(drawn, probabilities(logits, chosen, tally, added));
      assertLess(statistic, limit(freedom), `${freedom} degrees of freedom`);
    });
  }

  it("notices a distribution that is a little off", async () => {
    const drawn = await draws(logits, { ...plain, temperature: 1.04 }, 20261);
    const { statistic, freedom } = chiSquare(drawn, probabilities(logits, plain));
    assert(statistic > limit(freedom));
  });

  it("draws otherwise with another seed, and alike with the same", async () => {
    const [a, b, c] = [await draws(logits, plain, 1), await draws(logits, plain, 1), await draws(logits, plain, 2)];
    assertEquals(a, b);
    assertLess(a.filter((id, i) => id === c[i]).length, DRAWS / 2);
  });
});
