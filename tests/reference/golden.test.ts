/** The reference against results of independent libraries (tests/golden/ops; tests/golden/README.md says how they were made). */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { kvRows, layer as layerOf, tensor, unwritten, work } from "../cases/inputs.ts";
import { random } from "../cases/random.ts";
import { cluster } from "./clusterkv.ts";
import { decode, type LlamaConfig } from "./decoder.ts";
import { reference } from "./mod.ts";
import { r, rmsNorm, rotate, silu, softmax } from "./numbers.ts";
import { at, type DType, type Layer, type Plain, range, type Rows } from "./plain.ts";
import { readSafetensors } from "./safetensors.ts";

const here = new URL(".", import.meta.url);
const bytesOf = (path: string) => readFileSync(new URL(path, here));
const json = (path: string) => JSON.parse(bytesOf(path).toString());

interface Packed {
  dtype: "f32" | "f64" | "i32";
  shape: number[];
  data: string;
}
interface Golden {
  name: string;
  scalars: Record<string, number>;
  inputs: Record<string, Plain>;
  outputs: Record<string, Plain>;
}

function unpack({ dtype, shape, data }: Packed): Plain {
  const buffer = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)).buffer;
  const numbers = dtype === "f32" ? new Float32Array(buffer) : dtype === "f64" ? new Float64Array(buffer) : new Int32Array(buffer);
  return { dtype: dtype === "f64" ? "f32" : dtype satisfies DType, shape, data: new Float64Array(numbers) };
}

function goldens(file: string): Golden[] {
  const unpacked = (group: Record<string, Packed>) =>
    Object.fromEntries(Object.entries(group).map(([name, packed]) => [name, unpack(packed)]));
  return json(`../golden/ops/${file}.json`).cases.map((
    one: { name: string; scalars: Record<string, number>; inputs: Record<string, Packed>; outputs: Record<string, Packed> },
  ) => ({
    ...one,
    inputs: unpacked(one.inputs),
    outputs: unpacked(one.outputs),
  }));
}

function near(got: Float64Array, want: Float64Array, tolerance: number): void {
  assertEquals(got.length, want.length);
  got.forEach((x, i) => x === want[i] || assertAlmostEquals(x, want[i], tolerance));
}

/** One more dimension in front: the golden files know one slot. */
function slotted(array: Plain): Plain {
  return { ...array, shape: [1, ...array.shape] };
}

function each(file: string, check: (golden: Golden) => void): void {
  for (const golden of goldens(file)) it(`${file}: ${golden.name}`, () => check(golden));
}

/** A layer and rows around golden keys and values. */
function around({ scalars, inputs: { q, keys, values } }: Golden): { layer: Layer; rows: Rows } {
  const [kvHeads, length, headDim] = keys.shape;
  const numbers = random("around");
  const layer = layerOf(
    { hidden: 8, kvHeads, group: q.shape[q.shape.length - 2] / kvHeads, headDim, window: scalars.window ?? 0 },
    numbers,
  );
  const rows = kvRows({ lengths: [length], kvHeads, headDim, capacity: length, tail: length - (scalars.tailBegin ?? 0) }, numbers);
  return { layer: { ...layer, scale: scalars.scale }, rows: { ...rows, keys: slotted(keys), values: slotted(values) } };
}

describe("the reference agrees with independent libraries", () => {
  each("rmsnorm", ({ scalars, inputs: { x, weight }, outputs: { y } }) => {
    for (const row of range(x.shape[0])) near(rmsNorm(at(x, row), weight.data, Math.fround(scalars.eps)), at(y, row), 1e-13);
  });

  each("swiglu", ({ inputs: { gate, up }, outputs: { y } }) => {
    near(gate.data.map((value, i) => r(silu(value) * up.data[i])), y.data, 1e-13);
  });

  each("rope", ({ scalars, inputs: { position, q }, outputs: { frequencies, rotated } }) => {
    const [count, heads, headDim] = q.shape;
    const rotations = unwritten("f32", [count, 2, headDim / 2]);
    reference.rotations(rotations, position, frequencies, scalars.factor, count);
    for (const i of range(count)) {
      for (const g of range(heads)) near(rotate(at(q, i, g), at(rotations, i, 0), at(rotations, i, 1)), at(rotated, i, g), 1e-12);
    }
  });

  each("attend_chunk", (golden) => {
    const { layer, rows } = around(golden);
    const { inputs: { q }, outputs } = golden;
    const [attended, lse] = [unwritten("f32", q.shape), unwritten("f32", q.shape.slice(0, 2))];
    reference.attendChunk(attended, lse, q, rows, layer, 0, q.shape[0]);
    near(attended.data, outputs.attended.data, 1e-13);
    near(lse.data, outputs.lse.data, 1e-13);
  });

  each("attend", (golden) => {
    const { layer, rows } = around(golden);
    const { scalars, inputs: { q, index }, outputs } = golden;
    const [attended, lse] = [unwritten("f32", [1, ...q.shape]), unwritten("f32", [1, q.shape[0]])];
    reference.attend(attended, lse, slotted(q), rows, layer, slotted(index), work(1), scalars.sink);
    near(attended.data, outputs.attended.data, 1e-13);
    near(lse.data, outputs.lse.data, 1e-13);
  });

  each("kmeans", ({ scalars, inputs, outputs }) => {
    const { clusters, iterations } = scalars;
    const [rows, headDim] = inputs.keys.shape;
    const keys: Plain = { ...inputs.keys, shape: [1, 1, rows, headDim] };
    const run = Int32Array.of(0, 0, rows, 0, clusters);
    const [centroids, moved, offsets] = [
      unwritten("f32", [1, 1, clusters, headDim]),
      unwritten("i32", [1, 1]),
      unwritten("i32", [1, 1, clusters + 1]),
    ];
    const [labels, order] = [0, 1].map(() => unwritten("i32", [1, 1, rows]));
    reference.seedCentroids(centroids, labels, moved, keys, run);
    for (let round = 0; round < iterations; round++) {
      reference.assign(labels, moved, keys, centroids, work(1), run);
      reference.group(order, offsets, labels, moved, run);
      reference.centroidMeans(centroids, keys, order, offsets, moved, run);
    }
    assertEquals(labels.data, outputs.labels.data);
    near(centroids.data, outputs.centroids.data, 1e-12);

    // The transcription of ClusterKV has k-means of its own.
    const literal = cluster(range(rows).map((row) => at(inputs.keys, row)), range(rows), clusters, iterations, () => {});
    literal.forEach(({ centroid, members }, c) => {
      near(centroid, at(outputs.centroids, c), 1e-12);
      assertEquals(members, range(rows).filter((row) => outputs.labels.data[row] === c));
    });
  });

  each("select", ({ scalars, inputs: { q, centroids, offsets }, outputs }) => {
    const scores = unwritten("f32", slotted(outputs.scores).shape);
    const [order, index] = [unwritten("i32", scores.shape), unwritten("i32", slotted(outputs.index).shape)];
    const [count, active] = [tensor("i32", [1], () => centroids.shape[1]), tensor("i32", [1], () => 1)];
    reference.centroidScores(scores, slotted(q), slotted(centroids), null, slotted(offsets), count, active, scalars.scale, 0);
    near(scores.data, outputs.scores.data, 1e-13);
    reference.topk(order, scores, active);
    assertEquals(order.data, outputs.order.data);
    reference.fillBudget(index, order, slotted(offsets), active);
    assertEquals(index.data, outputs.index.data);
  });

  it("decoder: transformers gives the nano model's greedy tokens the same log-probabilities", () => {
    const model = "../../models/nano";
    const config: LlamaConfig = json(`${model}/config.json`);
    const weight = readSafetensors(bytesOf(`${model}/model.safetensors`));
    const { prompts } = json("../golden/nano/transformers-f32.json") as {
      prompts: { name: string; tokens: number[]; greedy: number[]; logprob: number[] }[];
    };
    const shortest = prompts.reduce((a, b) => b.tokens.length < a.tokens.length ? b : a);
    const fed = 8;
    const tokens = [...shortest.tokens, ...shortest.greedy.slice(0, fed)];
    const { logits } = decode(config, weight, tokens, shortest.tokens.length - 1);
    assert(shortest.tokens.length > 1 && logits.length === fed + 1);
    logits.forEach((row, step) => {
      const best = row.indexOf(Math.max(...row));
      assertEquals(best, shortest.greedy[step], `${shortest.name}, step ${step}`);
      assertAlmostEquals(Math.log(softmax(row)[best]), shortest.logprob[step], 2e-4);
    });
  });
});
