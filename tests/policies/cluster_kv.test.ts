/**
 * clusterKV() on a device against the literal transcription of the paper in tests/reference/clusterkv.ts: the same clusters, the same
 * rows, over random keys and over the nano model's own.
 */
import { assert, assertEquals, assertGreater, assertLess, fail } from "@std/assert";
import { readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { type Arena, type Device, isas, open } from "../../lib/device.ts";
import { Rows, type StepState, stepState } from "../../lib/kv/store.ts";
import { clusterKV } from "../../lib/policies/cluster_kv.ts";
import { type Allocator, everyRow, type Layer } from "../../lib/policies/policy.ts";
import type { Tensor } from "../../lib/tensor.ts";
import type { DType } from "../../lib/types.ts";
import { random } from "../cases/random.ts";
import { ClusterKVHead, type ClusterKVNumbers, paper } from "../reference/clusterkv.ts";
import { decode } from "../reference/decoder.ts";
import { range } from "../reference/plain.ts";
import { readSafetensors } from "../reference/safetensors.ts";

/** What a layer is given: keys[slot][kvHead][token] and queries[slot][head][token], rotated. */
interface Text {
  readonly keys: Float64Array[][][];
  readonly queries: Float64Array[][][];
  /** Tokens of each slot that are its prompt; the rest is generated. */
  readonly prompt: readonly number[];
}

/** One layer under clusterKV(), fed as a session feeds it. */
class PolicyLayer {
  readonly rows: Rows;
  readonly layer: Layer;
  readonly #state: StepState;
  readonly #policyState: Tensor[] = [];
  readonly #slots: { end: number; segments: number[] }[];

  constructor(readonly arena: Arena, readonly device: Device, readonly numbers: ClusterKVNumbers, text: Text, capacity: number) {
    const [slots, kvHeads, heads, headDim] = [text.keys.length, text.keys[0].length, text.queries[0].length, text.keys[0][0][0].length];
    this.#state = stepState(arena, 3, slots);
    this.#state.active.write(new Int32Array(slots).fill(1));
    const shape = {
      layers: 3,
      slots,
      heads,
      kvHeads,
      headDim,
      capacity,
      dtype: "f32" as const,
      scale: 1 / Math.sqrt(headDim),
      budget: numbers.budget,
    };
    this.rows = new Rows(arena, 2, shape, this.#state); // layers 0 and 1 are exempt
    for (let slot = 0; slot < slots; slot++) this.rows.commit(slot, capacity);
    const memory: Allocator = {
      tensor: (dtype, extents) => this.#keep(this.#tensor(dtype, extents)),
      scratch: (dtype, extents) => this.#tensor(dtype, extents),
      perRow: () => fail("clusterKV asks for no state of rows"),
      rotations: () => fail("clusterKV asks for no rotations"),
      constant: () => fail("clusterKV asks for no constants"),
    };
    const layer = clusterKV(numbers).layer(this.rows, memory);
    assert(layer !== everyRow);
    this.layer = layer;
    this.#slots = range(slots).map(() => ({ end: 0, segments: [] }));
  }

  /** Rows of one slot arrive: per KV head. The value of a row is its position, to see that it moves with its key. */
  append(slot: number, keys: readonly (readonly Float64Array[])[]): void {
    const { kvHeads, capacity, headDim } = this.rows;
    const { end } = this.#slots[slot];
    const added = keys[0].length;
    for (const h of range(kvHeads)) {
      const row = (slot * kvHeads + h) * capacity + end;
      this.rows.keys.write(Float32Array.from(keys[h].flatMap((key) => [...key])), row * headDim);
      this.rows.values.write(Float32Array.from({ length: added * headDim }, (_, i) => end + Math.floor(i / headDim)), row * headDim);
      this.rows.position.write(Int32Array.from(range(end, end + added)), row);
    }
    this.#slots[slot].end += added;
  }

  build(slot: number, ended: boolean): void {
    const held = this.#slots[slot];
    for (;;) {
      const begin = this.numbers.sink + held.segments.reduce((sum, rows) => sum + rows, 0);
      const due = this.layer.due!(Math.max(0, held.end - begin), ended, held.segments);
      if (due === 0) return;
      this.layer.build!(this.device.kernels, { slot, begin, rows: due, earlier: [...held.segments] });
      held.segments.push(due);
    }
  }

  /** Positions that each KV head of each slot recalls for these queries, best clusters first. */
  async recalled(queries: readonly (readonly Float64Array[])[]): Promise<number[][][]> {
    const { slots, kvHeads, capacity, heads, headDim, budget } = this.rows;
    const q = this.#tensor("f32", [slots, heads, headDim]);
    q.write(Float32Array.from(queries.flat().flatMap((query) => [...query])));
    const index = await this.layer.select(this.device.kernels, q, { rotations: q }).index!.read();
    const position = await this.rows.position.read();
    return range(slots).map((s) =>
      range(kvHeads).map((h) => {
        const plane = s * kvHeads + h;
        return [...index.subarray(plane * budget, (plane + 1) * budget)].filter((row) => row >= 0).map((row) =>
          position[plane * capacity + row]
        );
      })
    );
  }

  /** Clusters of each KV head of a slot: centroids, and members' positions in the order of their rows. */
  async clusters(slot: number): Promise<{ centroid: Float32Array; members: number[] }[][]> {
    const { kvHeads, capacity, headDim } = this.rows;
    const [centroids, offsets, count] = await Promise.all(this.#policyState.map((tensor) => tensor.read()));
    const [position, values] = await Promise.all([this.rows.position.read(), this.rows.values.read()]);
    const most = this.#policyState[0].shape[2];
    return range(kvHeads).map((h) => {
      const plane = slot * kvHeads + h;
      return range(count[slot]).map((c) => {
        const rows = range(offsets[plane * (most + 1) + c], offsets[plane * (most + 1) + c + 1]);
        const members = rows.map((row) => position[plane * capacity + row]);
        assertEquals(rows.map((row) => values[(plane * capacity + row) * headDim]), members, "values moved otherwise than positions");
        return { centroid: (centroids as Float32Array).slice((plane * most + c) * headDim, (plane * most + c + 1) * headDim), members };
      });
    });
  }

  #tensor(dtype: DType, shape: readonly number[]): Tensor {
    const tensor = this.arena.tensor(dtype, shape);
    tensor.commit(shape.at(-2) ?? 1);
    return tensor;
  }

  #keep(tensor: Tensor): Tensor {
    this.#policyState.push(tensor);
    return tensor;
  }
}

/** Feeds a text to device and transcription, token by token after the prompts, and compares clusters and selections on the way. */
async function compare(isa: string, text: Text, numbers: ClusterKVNumbers): Promise<void> {
  using device = await open("cpu", { isa });
  using arena = device.arena(1 << 30);
  const slots = range(text.keys.length);
  const kvHeads = range(text.keys[0].length);
  const group = text.queries[0].length / kvHeads.length;
  const lengths = text.keys.map((heads) => heads[0].length);
  const policy = new PolicyLayer(arena, device, numbers, text, Math.max(...lengths));
  const literal = slots.map(() => kvHeads.map(() => new ClusterKVHead(numbers)));

  for (const s of slots) {
    policy.append(s, text.keys[s].map((keys) => keys.slice(0, text.prompt[s])));
    policy.build(s, false);
    policy.build(s, true);
    for (const h of kvHeads) literal[s][h].prefill(text.keys[s][h].slice(0, text.prompt[s]));
  }
  let selections = 0;
  for (const step of range(Math.min(...slots.map((s) => lengths[s] - text.prompt[s])))) {
    const token = slots.map((s) => text.prompt[s] + step);
    for (const s of slots) {
      policy.append(s, text.keys[s].map((keys) => [keys[token[s]]]));
      policy.build(s, true);
      for (const h of kvHeads) literal[s][h].append(text.keys[s][h][token[s]]);
    }
    if (step % 16 > 0) continue;
    const queries = slots.map((s) => text.queries[s].map((head) => head[token[s]]));
    const recalled = await policy.recalled(queries);
    for (const s of slots) {
      for (const h of kvHeads) {
        const want = literal[s][h].select(queries[s].slice(h * group, (h + 1) * group), policy.rows.scale);
        assertEquals(recalled[s][h], want.recalled, `slot ${s}, head ${h}, step ${step}`);
        selections += want.recalled.length > 0 ? 1 : 0;
      }
    }
  }
  assertGreater(selections, 0);
  for (const s of slots) {
    (await policy.clusters(s)).forEach((clusters, h) => {
      assertEquals(clusters.map(({ members }) => members), literal[s][h].clusters.map(({ members }) => members));
      clusters.forEach(({ centroid }, c) =>
        centroid.forEach((x, i) => assertLess(Math.abs(x - literal[s][h].clusters[c].centroid[i]), 1e-4))
      );
      assertGreater(literal[s][h].smallestMargin, 1e-7, "a choice too close to be the same in f32 by more than luck: change the seed");
    });
  }
}

/** Keys around a common mean, as keys after rotation are, in blobs; queries alike. */
function randomText(seed: string, lengths: readonly number[], prompt: readonly number[]): Text {
  const [kvHeads, group, headDim] = [2, 2, 16];
  const numbers = random(seed);
  const blobs = range(12).map(() => range(headDim).map(() => 1 + 2 * numbers.normal()));
  const vector = () => {
    const blob = blobs[numbers.below(blobs.length)];
    return Float64Array.from(blob, (x) => Math.fround(x + numbers.normal()));
  };
  const vectors = (heads: number) => lengths.map((length) => range(heads).map(() => range(length).map(vector)));
  return { keys: vectors(kvHeads), queries: vectors(kvHeads * group), prompt };
}

/** One layer's keys and queries of the nano model over prose, from the reference decoder. */
function modelText(tokens: number, prompt: number): Text {
  const read = (path: string) => readFileSync(new URL(path, import.meta.url));
  const { prompts } = JSON.parse(read("../golden/nano/transformers-f32.json").toString()) as {
    prompts: { name: string; tokens: number[] }[];
  };
  const prose = prompts.find(({ name }) => name === "long")!.tokens.slice(0, tokens);
  const config = JSON.parse(read("../../models/nano/config.json").toString());
  const { keys, queries } = decode(
    { ...config, num_hidden_layers: 3 },
    readSafetensors(read("../../models/nano/model.safetensors")),
    prose,
    tokens,
  );
  const inF32 = (heads: Float64Array[][]) => heads.map((head) => head.map((vector) => vector.map(Math.fround)));
  return { keys: [inF32(keys[2])], queries: [inF32(queries[2])], prompt: [prompt] };
}

describe("clusterKV is the paper's", () => {
  const small: ClusterKVNumbers = { sink: 16, budget: 60, tokensPerCluster: 12, iterations: 20, segment: 128, every: 48 };
  let nanoText: Text | undefined;

  for (const isa of isas()) {
    it(`${isa}: random keys, two slots, segments, generated tokens`, () =>
      compare(isa, randomText("segments", [420, 260], [330, 170]), small));
    it(`${isa}: random keys, one segment, rounds cut short`, () =>
      compare(isa, randomText("cut", [400], [350]), { ...small, segment: Infinity, iterations: 3 }));
    it(`${isa}: a prompt shorter than the sink`, () => compare(isa, randomText("short", [110], [10]), small));
    it(`${isa}: the paper's own numbers`, () => compare(isa, randomText("paper", [1100], [450]), { ...paper, budget: 200 }));
    it(`${isa}: the nano model's own keys`, () => compare(isa, nanoText ??= modelText(420, 340), small));
  }
});
