// The ops alone, on arrays of one's own: held against a few lines of arithmetic, and what they refuse.
import { assert, assertAlmostEquals, assertEquals, assertInstanceOf, assertLess, assertMatch, assertThrows } from "@std/assert";
import { describe, it } from "node:test";
import { assign, attend, centroidScores, fillBudget, gatherRows, kmeans, open, topk } from "recallkv/kernels";
import { random } from "../cases/random.ts";

const device = await open("cpu", { threads: 2 });
const { normal } = random("kernels");
const normals = (count: number) => Float32Array.from({ length: count }, normal);
const [slots, kvHeads, heads, rows, dim] = [2, 2, 4, 300, 16];
const keyData = normals(slots * kvHeads * rows * dim);
const valueData = normals(slots * kvHeads * rows * dim);
const queryData = normals(slots * heads * dim);
const keys = device.from(keyData, [slots, kvHeads, rows, dim]);
const values = device.from(valueData, [slots, kvHeads, rows, dim]);
const q = device.from(queryData, [slots, heads, dim]);

const dot = (a: ArrayLike<number>, b: ArrayLike<number>) => Array.from(a).reduce((sum, x, i) => sum + x * b[i], 0);
const row = (data: Float32Array, plane: number, r: number, of = rows) => data.subarray((plane * of + r) * dim, (plane * of + r + 1) * dim);

/** Attention over some rows, as it is written. */
function attention(slot: number, head: number, chosen: number[]): number[] {
  const plane = slot * kvHeads + Math.floor(head / (heads / kvHeads));
  const query = row(queryData, slot, head, heads);
  const powers = chosen.map((r) => Math.exp(dot(query, row(keyData, plane, r)) / Math.sqrt(dim)));
  const total = powers.reduce((a, b) => a + b, 0);
  return Array.from({ length: dim }, (_, d) => powers.reduce((sum, p, i) => sum + (p / total) * row(valueData, plane, chosen[i])[d], 0));
}

describe("recallkv/kernels", () => {
  it("clusters: members are nearest to their centroid by cosine, and centroids are their means", async () => {
    const { centroids, labels, order, offsets } = kmeans(device, keys, { clusters: 9, iterations: 50 });
    const [means, label, ordered, ends] = await Promise.all([centroids, labels, order, offsets].map((array) => array.read()));
    assertEquals(await assign(device, keys, centroids).read(), label);
    for (let plane = 0; plane < slots * kvHeads; plane++) {
      assertEquals([ends[plane * 10], ends[plane * 10 + 9]], [0, rows]);
      for (let c = 0; c < 9; c++) {
        const members = Array.from(ordered.subarray(plane * rows + ends[plane * 10 + c], plane * rows + ends[plane * 10 + c + 1]));
        assertEquals(members, [...Array(rows).keys()].filter((r) => label[plane * rows + r] === c));
        const mean = (d: number) => members.reduce((sum, r) => sum + row(keyData, plane, r)[d], 0) / members.length;
        for (let d = 0; d < dim; d++) assertAlmostEquals(means[(plane * 9 + c) * dim + d], mean(d), 1e-5);
      }
      for (let r = 0; r < rows; r += 37) {
        const cosine = (c: number) => {
          const centroid = row(means as Float32Array, plane, c, 9);
          return dot(row(keyData, plane, r), centroid) / Math.sqrt(dot(centroid, centroid));
        };
        const best = Math.max(...[...Array(9).keys()].map(cosine));
        assertLess(best - cosine(label[plane * rows + r]), 1e-5);
      }
    }
  });

  it("scores centroids, ranks them, fills a budget and gathers its rows", async () => {
    const { centroids, offsets } = kmeans(device, keys, { clusters: 9 });
    const scores = await centroidScores(device, q, centroids, { offsets }).read();
    for (let plane = 0; plane < slots * kvHeads; plane++) { // each of the group's heads gives probabilities
      assertAlmostEquals(Array.from(scores.subarray(plane * 9, plane * 9 + 9)).reduce((a, b) => a + b, 0), heads / kvHeads, 1e-5);
    }
    const order = topk(device, centroidScores(device, q, centroids, { offsets }), 9);
    const ranked = await order.read();
    for (let plane = 0; plane < slots * kvHeads; plane++) {
      const want = [...Array(9).keys()].sort((a, b) => scores[plane * 9 + b] - scores[plane * 9 + a] || a - b);
      assertEquals(Array.from(ranked.subarray(plane * 9, plane * 9 + 9)), want);
    }
    const index = fillBudget(device, order, offsets, 64);
    const chosen = await index.read();
    const gathered = await gatherRows(device, keys, index).read() as Float32Array;
    const ends = await offsets.read();
    assertEquals(chosen[0], ends[ranked[0]]);
    for (let plane = 0; plane < slots * kvHeads; plane++) {
      const picked = Array.from(chosen.subarray(plane * 64, plane * 64 + 64));
      assertEquals(new Set(picked).size, 64);
      picked.forEach((r, i) => assertEquals(row(gathered, plane, i, 64), row(keyData, plane, r)));
    }
  });

  it("attends every row, or those that are named", async () => {
    const all = [...Array(rows).keys()];
    const { attended, lse } = attend(device, q, keys, values);
    const [whole, sums] = [await attended.read(), await lse.read()];
    const some = [250, 7, 100, 31];
    const index = device.from(Int32Array.from({ length: slots * kvHeads * 6 }, (_, i) => some[i % 6] ?? -1), [slots, kvHeads, 6]);
    const few = await attend(device, q, keys, values, { index, sink: 2, tail: 3 }).attended.read();
    for (let slot = 0; slot < slots; slot++) {
      for (let head = 0; head < heads; head++) {
        const [full, part] = [attention(slot, head, all), attention(slot, head, [0, 1, ...some, rows - 3, rows - 2, rows - 1])];
        for (let d = 0; d < dim; d++) {
          assertAlmostEquals(whole[(slot * heads + head) * dim + d], full[d], 1e-5);
          assertAlmostEquals(few[(slot * heads + head) * dim + d], part[d], 1e-5);
        }
      }
    }
    const logits = all.map((r) => dot(row(queryData, 0, 0, heads), row(keyData, 0, r)) / Math.sqrt(dim));
    assertAlmostEquals(sums[0], Math.log(logits.reduce((sum, x) => sum + Math.exp(x), 0)), 1e-5);
  });

  it("takes 16-bit vectors by their bits", async () => {
    const bits = Uint16Array.from(keyData, (x) => new Uint32Array(Float32Array.of(x).buffer)[0] >>> 16);
    const rounded = Float32Array.from(bits, (b) => new Float32Array(Uint32Array.of(b << 16).buffer)[0]);
    const half = kmeans(device, device.from(bits, keys.shape, "bf16"), { clusters: 5 });
    assertEquals(await half.labels.read(), await kmeans(device, device.from(rounded, keys.shape), { clusters: 5 }).labels.read());
  });

  it("gives memory back", async () => {
    using own = await open("cpu", { threads: 1 });
    for (let i = 0; i < 300; i++) {
      using big = own.array("f32", [1, 1, 4096, 1024]);
      if (i % 50 === 0) await big.read();
    }
    using vectors = own.from(Float32Array.of(0, 1, 0, 2, 3, 0, 4, 0), [1, 1, 4, 2]);
    const { labels, centroids } = kmeans(own, vectors, { clusters: 2 });
    assertEquals([await labels.read(), await centroids.read()], [Int32Array.of(0, 0, 1, 1), Float32Array.of(0, 1.5, 3.5, 0)]);
  });

  const refused: [string, () => unknown, RegExp][] = [
    ["data of another length", () => device.from(normals(5), [2, 3]), /data has 5 numbers but shape \[2, 3\] has 6/],
    ["data of another kind", () => device.from([1, 2] as unknown as Float32Array, [2]), /data is an object .*want a Float32Array/],
    ["bits without a dtype", () => device.from(new Uint16Array(2) as never, [2]), /want .* "f16" or "bf16"/],
    ["no clusters", () => kmeans(device, keys, { clusters: 0 }), /clusters is 0, want a whole number from 1 to 300/],
    ["more clusters than rows", () => kmeans(device, keys, { clusters: 301 }), /clusters is 301/],
    ["NaN", () => attend(device, q, keys, values, { scale: NaN }), /scale is NaN/],
    ["too few dimensions", () => kmeans(device, q, { clusters: 2 }), /keys is \[2, 4, 16\], want \[slots, kvHeads, rows, headDim\]/],
    ["keys that are no array", () => kmeans(device, keyData as never, { clusters: 2 }), /keys is an object, want an array of the device/],
    ["a tail that meets the sink", () => attend(device, q, keys, values, { sink: 200, tail: 101 }), /tail is 101, want .* from 0 to 100/],
    ["a k past the width", () => topk(device, device.array("f32", [1, 1, 4]), 5), /k is 5, want a whole number from 1 to 4/],
  ];
  for (const [name, work, sentence] of refused) {
    it(`refuses ${name}`, () => {
      const error = assertThrows(work);
      assert(error instanceof RangeError || error instanceof TypeError);
      assertMatch(error.message, sentence);
    });
  }

  const misfits: [string, () => unknown, ErrorConstructor, RegExp][] = [
    [
      "centroids of another width",
      () => assign(device, keys, device.array("f32", [2, 2, 3, 8])),
      RangeError,
      /^Cannot assign: centroids is/,
    ],
    ["an index of floats", () => gatherRows(device, keys, device.array("f32", [2, 2, 3])), TypeError, /index is f32, want i32/],
    ["heads that make no groups", () => attend(device, device.array("f32", [2, 3, 16]), keys, values), RangeError, /q has 3 heads/],
  ];
  for (const [name, work, kind, sentence] of misfits) {
    it(`says what does not fit: ${name}`, () => {
      const error = assertThrows(work);
      assertInstanceOf(error, kind);
      assertMatch((error as Error).message, sentence);
    });
  }
});
