/** The reference against identities that hold whatever the inputs. (Against independent libraries: golden.test.ts beside it.) */
import { assert, assertAlmostEquals, assertEquals, assertLessOrEqual } from "@std/assert";
import { describe, it } from "node:test";
import { clusterCases } from "../cases/cluster.ts";
import { kvRows, layer as layerOf, tensor, unwritten, work } from "../cases/inputs.ts";
import { random } from "../cases/random.ts";
import { selectCases } from "../cases/select.ts";
import { closeness } from "./cluster_ops.ts";
import { reference } from "./mod.ts";
import { dot, rotate, softmax } from "./numbers.ts";
import { at, type Layer, type Plain, range, type Rows } from "./plain.ts";

const [kvHeads, group, headDim] = [2, 3, 16];
const heads = kvHeads * group;

function near(a: Float64Array, b: Float64Array, tolerance = 1e-12): void {
  assertEquals(a.length, b.length);
  a.forEach((x, i) => assertAlmostEquals(x, b[i], tolerance));
}

interface Scene {
  rows: Rows;
  layer: Layer;
  q: Plain;
}

function scene(length: number, tail: number): Scene {
  const numbers = random(`scene ${length} ${tail}`);
  return {
    rows: kvRows({ lengths: [length], kvHeads, headDim, capacity: length, tail }, numbers),
    layer: layerOf({ hidden: 16, kvHeads, group, headDim }, numbers),
    q: tensor("f32", [1, heads, headDim], numbers.normal),
  };
}

function attend({ rows, layer, q }: Scene, index: Plain | null, sink: number): { attended: Plain; lse: Plain } {
  const [attended, lse] = [unwritten("f32", [1, heads, headDim]), unwritten("f32", [1, heads])];
  reference.attend(attended, lse, q, rows, layer, index, work(1), sink);
  return { attended, lse };
}

describe("the reference", () => {
  it("softmax sums to 1, also of huge numbers and of a single one", () => {
    for (const x of [[0, 1, 2], [1e300, -1e300, 0], [-1000, -1001], [5], [-Infinity, 3]]) {
      assertAlmostEquals(softmax(Float64Array.from(x)).reduce((a, b) => a + b), 1, 1e-15);
    }
  });

  it("shares of a group sum to the heads of the group", () => {
    for (const one of selectCases.filter(({ op, name }) => op === "centroidScores" && !name.includes("perHead"))) {
      const args = one.make() as unknown as Parameters<typeof reference.centroidScores> & Record<string, Plain>;
      const { scores, q, offsets, count, active } = args;
      reference.centroidScores(...Object.values(args) as Parameters<typeof reference.centroidScores>);
      for (const s of range(scores.shape[0]).filter((slot) => active.data[slot])) {
        for (const h of range(scores.shape[1])) {
          const ranked = [...at(scores, s, h)].filter((score) => score > -Infinity);
          const members = range(count.data[s]).filter((c) => at(offsets, s, h, c)[0] < at(offsets, s, h, c + 1)[0]);
          assertEquals(ranked.length, members.length);
          if (ranked.length > 0) assertAlmostEquals(ranked.reduce((a, b) => a + b), q.shape[1] / scores.shape[1], 1e-12);
        }
      }
    }
  });

  it("attention over sink, index and tail together is attention over every row, in any order", () => {
    const partial = scene(90, 20);
    const between = random("order");
    const index = tensor("i32", [1, kvHeads, 80], () => -1);
    for (const h of range(kvHeads)) at(index, 0, h).set(between.shuffled(66).map((i) => 4 + i));
    const whole: Scene = { ...partial, rows: { ...partial.rows, tailBegin: tensor("i32", [2, 1], () => 0) } };
    const [a, b] = [attend(partial, index, 4), attend(whole, null, 0)];
    near(a.attended.data, b.attended.data);
    near(a.lse.data, b.lse.data);
  });

  it("the last query of a chunk sees what a step sees", () => {
    const { rows, layer, q } = scene(40, 40);
    const [attended, lse] = [unwritten("f32", [1, heads, headDim]), unwritten("f32", [1, heads])];
    reference.attendChunk(attended, lse, q, rows, layer, 0, 1);
    const step = attend({ rows, layer, q }, null, 0);
    near(attended.data, step.attended.data, 0);
    near(lse.data, step.lse.data, 0);
  });

  it("what is not read moves the output by at most 2 (1 - p) max |v|, p the mass that is read", () => {
    const { rows, layer, q } = scene(200, 30);
    const dense = attend({ rows: { ...rows, tailBegin: tensor("i32", [2, 1], () => 0) }, layer, q }, null, 0);
    const sparse = attend({ rows, layer, q }, null, 4);
    for (const g of range(heads)) {
      const mass = Math.exp(at(sparse.lse, 0, g)[0] - at(dense.lse, 0, g)[0]);
      const plane = Math.floor(g / group);
      const longest = Math.max(...range(200).map((row) => Math.hypot(...at(rows.values, 0, plane, row))));
      const off = Math.hypot(...at(sparse.attended, 0, g).map((x, i) => x - at(dense.attended, 0, g)[i]));
      assert(mass > 0 && mass < 1);
      assertLessOrEqual(off, 2 * (1 - mass) * longest);
    }
  });

  it("rotation keeps lengths, and a product depends on the distance of positions alone", () => {
    const numbers = random("rotation");
    const [a, b] = [0, 1].map(() => Float64Array.from({ length: 32 }, numbers.normal));
    const turned = (x: Float64Array, position: number) => {
      const table = unwritten("f32", [1, 2, 16]);
      reference.rotations(table, tensor("i32", [1], () => position), tensor("f32", [16], (i) => 10000 ** (-i / 16)), 1, 1);
      return rotate(x, at(table, 0, 0), at(table, 0, 1));
    };
    assertAlmostEquals(Math.hypot(...turned(a, 1234)), Math.hypot(...a), 1e-12);
    assertAlmostEquals(dot(turned(a, 17), turned(b, 5)), dot(turned(a, 1012), turned(b, 1000)), 1e-9);
  });

  it("k-means: closeness never falls, and the members of the clusters are all rows, once", () => {
    const numbers = random("k-means");
    const [rows, clusters, sink] = [300, 9, 16];
    const run = Int32Array.of(0, sink, rows, 0, clusters);
    const keys = tensor("f32", [1, 1, sink + rows, 8], () => 1 + numbers.normal());
    const centroids = unwritten("f32", [1, 1, clusters, 8]);
    const [labels, order] = [0, 1].map(() => unwritten("i32", [1, 1, sink + rows]));
    const [moved, offsets] = [unwritten("i32", [1, 1]), unwritten("i32", [1, 1, clusters + 1])];
    const total = () =>
      range(sink, sink + rows).reduce((sum, row) => sum + closeness(at(keys, 0, 0, row), at(centroids, 0, 0, labels.data[row])), 0);

    reference.seedCentroids(centroids, labels, moved, keys, run);
    let best = -Infinity;
    let rounds = 0;
    for (; moved.data[0] && rounds < 100; rounds++) {
      reference.assign(labels, moved, keys, centroids, work(1), run);
      assertLessOrEqual(best - 1e-9, best = total());
      reference.group(order, offsets, labels, moved, run);
      reference.centroidMeans(centroids, keys, order, offsets, moved, run);
      assertLessOrEqual(best - 1e-9, best = total());
    }
    assert(rounds > 3 && rounds < 100, `${rounds} rounds`);
    assertEquals([...order.data.slice(sink)].sort((a, b) => a - b), range(sink, sink + rows));
    assertEquals([offsets.data[0], offsets.data[clusters]], [sink, sink + rows]);
  });

  it("selections hold no row twice, none out of range, none where -1 has begun", () => {
    for (const one of selectCases.filter(({ op }) => op === "fillBudget")) {
      const args = one.make() as Record<string, Plain>;
      reference.fillBudget(...Object.values(args) as Parameters<typeof reference.fillBudget>);
      const { index, offsets, active } = args;
      for (const s of range(index.shape[0]).filter((slot) => active.data[slot])) {
        for (const h of range(index.shape[1])) {
          const rows = [...at(index, s, h)];
          const valid = rows.filter((row) => row >= 0);
          const clustered = at(offsets, s, Math.floor(h / (index.shape[1] / offsets.shape[1]))).filter((row) => row < 1 << 30);
          assertEquals(new Set(valid).size, valid.length);
          assert(rows.slice(valid.length).every((row) => row === -1));
          assert(valid.every((row) => row >= clustered[0] && row < Math.max(...clustered)));
        }
      }
    }
  });

  it("permuting rows moves every row and loses none", () => {
    for (const one of clusterCases.filter(({ op }) => op === "permuteRows")) {
      const [before, after] = [one.make(), one.make()].map((args) => args as Record<string, Plain>);
      reference.permuteRows(...Object.values(after) as unknown as Parameters<typeof reference.permuteRows>);
      const sorted = ({ data }: Plain) => [...data].sort((a, b) => a - b);
      assertEquals(sorted(after.tensor), sorted(before.tensor));
    }
  });
});
