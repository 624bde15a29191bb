// The transcription of SALS against what must hold of it whatever the numbers are.
import { assert, assertAlmostEquals, assertEquals, assertGreater } from "@std/assert";
import { describe, it } from "node:test";
import { inputsOf } from "../../golden/policies/read.ts";
import { sals, type SALSProblem, salsProjection } from "./sals.ts";

const { length, heads, kvHeads, headDim, q, keys, values } = inputsOf(61, 120);
const width = kvHeads * headDim;
const sideBySide = (planes: Float32Array) =>
  Array.from(
    { length },
    (_, row) => Array.from({ length: width }, (_, w) => planes[(Math.floor(w / headDim) * length + row) * headDim + w % headDim]),
  );
const rows = sideBySide(keys);
const whole = salsProjection(rows, width);
const problem = (own: Partial<SALSProblem>): SALSProblem => ({
  heads,
  kvHeads,
  headDim,
  base: 10000,
  keys: rows,
  values: sideBySide(values),
  q: Array.from({ length: heads }, (_, head) => [...q.subarray((119 * heads + head) * headDim, (119 * heads + head + 1) * headDim)]),
  position: 119,
  projection: whole,
  ranked: width,
  budget: 20,
  sink: 8,
  tail: 110,
  ...own,
});
const dot = (x: readonly number[], y: readonly number[]) => x.reduce((total, value, i) => total + value * y[i], 0);

describe("the transcription of SALS", () => {
  it("has orthonormal directions, the weightiest first", () => {
    const columns = whole[0].map((_, c) => whole.map((row) => row[c]));
    const weight = columns.map((u) => rows.reduce((total, key) => total + dot(key, u) ** 2, 0));
    columns.forEach((u, a) => columns.forEach((v, b) => assertAlmostEquals(dot(u, v), a === b ? 1 : 0, 1e-10)));
    weight.slice(1).forEach((x, c) => assertGreater(weight[c] + 1e-9, x));
    assertAlmostEquals(weight.reduce((a, b) => a + b), rows.reduce((total, key) => total + dot(key, key), 0), 1e-6);
  });

  it("ranks by keys and queries that are not rotated when no direction is left out", () => {
    const { q, keys, sink } = problem({});
    const { scores, chosen } = sals(problem({}));
    const plain = (row: number) =>
      q.reduce(
        (total, x, head) => total + dot(x, keys[row].slice(Math.floor(head / 2) * headDim, (Math.floor(head / 2) + 1) * headDim)),
        0,
      );
    scores.forEach((score, i) => assertAlmostEquals(score, plain(sink + i), 1e-9));
    assertEquals(chosen, scores.map((_, i) => i).sort((a, b) => scores[b] - scores[a]).slice(0, 20).map((i) => i + sink));
  });

  it("gives exact attention when no direction and no row is left out", () => {
    const all = sals(problem({ budget: 102 })).attended;
    const none = sals(problem({ budget: 0, sink: 120, tail: 120 })).attended;
    all.forEach((out, head) => out.forEach((x, d) => assertAlmostEquals(x, none[head][d], 1e-10)));
  });

  it("turns each reconstructed key to where it stood", () => {
    const { chosen, keys } = sals(problem({}));
    chosen.forEach((row, i) => {
      for (const pair of [0, 3]) {
        const [a, b, angle] = [rows[row][headDim + pair], rows[row][headDim + pair + 16], row * 10000 ** (-pair / 16)];
        assertAlmostEquals(keys[i][headDim + pair], a * Math.cos(angle) - b * Math.sin(angle), 1e-9);
        assertAlmostEquals(keys[i][headDim + pair + 16], b * Math.cos(angle) + a * Math.sin(angle), 1e-9);
      }
    });
  });

  it("loses what the left-out directions held", () => {
    const exact = sals(problem({ budget: 102 })).attended.flat();
    const away = (rank: number) => {
      const low = sals(problem({ budget: 102, projection: whole.map((u) => u.slice(0, rank)), ranked: rank })).attended.flat();
      return Math.hypot(...low.map((x, i) => x - exact[i])) / Math.hypot(...exact);
    };
    assertGreater(away(8), away(48));
    assert(away(48) > 1e-3);
  });
});
