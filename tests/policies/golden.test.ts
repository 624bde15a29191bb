// Policies against what published code keeps of the same keys and queries (tests/golden/README.md says whose).
import { assert, assertEquals, assertLess } from "@std/assert";
import { describe, it } from "node:test";
import { type Arena, type Device, open } from "../../lib/device.ts";
import type { Kernels, LayerHandle } from "../../lib/kernels.ts";
import { SessionAllocator } from "../../lib/kv/allocator.ts";
import { Rows, type StepState, stepState } from "../../lib/kv/store.ts";
import { chunkKV } from "../../lib/policies/chunk_kv.ts";
import { h2o } from "../../lib/policies/h2o.ts";
import { type Attention, everyRow, type Kept, type Layer, type Policy } from "../../lib/policies/policy.ts";
import { infiniGen } from "../../lib/policies/infini_gen.ts";
import { LayerBases } from "../../lib/calibration.ts";
import { pyramidInfer } from "../../lib/policies/pyramid_infer.ts";
import { quest } from "../../lib/policies/quest.ts";
import { sals } from "../../lib/policies/sals.ts";
import { snapKV } from "../../lib/policies/snap_kv.ts";
import type { Tensor } from "../../lib/tensor.ts";
import { layer as plainLayer } from "../cases/inputs.ts";
import { onDevice } from "../cases/device.ts";
import { random } from "../cases/random.ts";
import {
  chunkKVGoldens,
  h2oGoldens,
  h2oRatesGoldens,
  infiniGenGoldens,
  type Inputs,
  pyramidInferGoldens,
  questGoldens,
  snapKVGoldens,
} from "../golden/policies/read.ts";
import { range } from "../reference/plain.ts";
import { sals as transcribed, salsProjection } from "../reference/policies/sals.ts";

const sorted = (rows: Iterable<number>) => [...rows].sort((a, b) => a - b);

const vector = (planes: Float32Array, i: number, width: number) => planes.subarray(i * width, (i + 1) * width);

/** Cosines and sines of positions: f32[positions, 2, headDim / 2]. */
function rotations(positions: readonly number[], headDim: number): Float32Array {
  const angles = positions.map((position) => range(headDim / 2).map((i) => position * 10_000 ** (-2 * i / headDim)));
  return Float32Array.from(angles.flatMap((row) => [...row.map(Math.cos), ...row.map(Math.sin)]));
}

interface Place {
  readonly layer: number;
  readonly layers: number;
}

/** One layer under a policy, its rows written by hand: row i is token i. */
class Bench {
  readonly rows: Rows;
  readonly layer: Layer;
  readonly k: Kernels;
  readonly #state: StepState;
  readonly #at: number;
  end = 0;

  constructor(readonly device: Device, readonly arena: Arena, policy: Policy, readonly inputs: Inputs, budget: number, at: Place) {
    const { length, kvHeads, heads, headDim } = inputs;
    this.k = device.kernels;
    this.#at = at.layer;
    this.#state = stepState(arena, at.layers, 1);
    this.#state.active.write(Int32Array.of(1));
    const shape = {
      layers: at.layers,
      slots: 1,
      heads,
      kvHeads,
      headDim,
      capacity: length,
      dtype: "f32" as const,
      scale: headDim ** -0.5,
      budget,
    };
    this.rows = new Rows(arena, at.layer, shape, this.#state);
    this.rows.commit(0, length);
    const memory = new SessionAllocator(arena, 1, () => this.tensor([length, 2, headDim / 2], rotations(range(length), headDim)));
    memory.nextLayer(this.rows);
    const layer = policy.layer(this.rows, memory);
    assert(layer !== everyRow);
    this.layer = layer;
  }

  tensor(shape: readonly number[], values?: Float32Array): Tensor {
    const tensor = this.arena.tensor("f32", shape);
    tensor.commit(shape.at(-2) ?? 1);
    if (values) tensor.write(values);
    return tensor;
  }

  /** Tokens become the next rows. */
  append(tokens: readonly number[]): void {
    const { kvHeads, length, headDim, keys, values } = this.inputs;
    for (const h of range(kvHeads)) {
      const row = h * length + this.end;
      const taken = (planes: Float32Array) =>
        Float32Array.from(tokens.flatMap((token) => [...vector(planes, h * length + token, headDim)]));
      this.rows.keys.write(taken(keys), row * headDim);
      this.rows.values.write(taken(values), row * headDim);
      this.rows.position.write(Int32Array.from(tokens), row);
    }
    this.end += tokens.length;
    this.#state.rowEnd.write(Int32Array.of(this.end), this.#at);
  }

  /** Queries of tokens, and room for what attention makes of them. */
  attention(tokens: readonly number[], slot: number, layer: LayerHandle, prompt: number): Attention {
    const { heads, headDim, q } = this.inputs;
    const count = tokens.length;
    const queries = this.tensor(
      [count, heads, headDim],
      Float32Array.from(tokens.flatMap((token) => [...vector(q, token, heads * headDim)])),
    );
    const [attended, lse] = [this.tensor([count, heads, headDim]), this.tensor([count, heads])];
    return { slot, count, from: 0, rest: 0, begin: 0, prompt, q: queries, attended, lse, rotations: queries, layer };
  }

  /** Reads a prompt, or what has come through of one; returns what the policy says to keep. */
  prompt(tokens: readonly number[], layer: LayerHandle, prompt = tokens.length): Kept | undefined {
    const { k, rows } = this;
    this.append(tokens);
    const attention = this.attention(tokens, 0, layer, prompt);
    k.attendChunk(attention.attended, attention.lse, attention.q, rows.handle, layer, 0, tokens.length);
    this.layer.observe?.(k, attention);
    const kept = this.layer.giveBack?.(k, { slot: 0, after: "prompt", rows: tokens.length, begin: 0, prompt, generated: 0 });
    if (kept && kept.of !== "deeper") {
      k.compact(rows.handle, kept.also ?? null, kept.keep, 0, kept.count);
      this.end = kept.count;
    }
    return kept;
  }

  /** Feeds token `i` in a step that reads every row held. */
  step(i: number, layer: LayerHandle): void {
    const { k, rows } = this;
    this.append([i]);
    const attention = this.attention([i], -1, layer, 0);
    const work = this.tensor([this.inputs.heads * (Math.ceil(this.inputs.length / 256) + 2) * (this.inputs.headDim + 2)]);
    k.attend(attention.attended, attention.lse, attention.q, rows.handle, layer, null, work, 0);
    this.layer.attended?.(k, attention);
    this.end = this.layer.rowsAfterStep?.(this.end) ?? this.end;
  }

  /** Tokens whose rows a KV head holds. */
  async held(h: number): Promise<number[]> {
    return sorted(await this.rows.position.read(h * this.inputs.length, this.end));
  }
}

async function under<T>(
  policy: Policy,
  inputs: Inputs,
  budget: number,
  enqueue: (bench: Bench, layer: LayerHandle) => void,
  read: (bench: Bench) => Promise<T>,
  at: Place = { layer: 1, layers: 2 },
): Promise<T> {
  const device = await open("cpu");
  using arena = device.arena(1 << 30);
  const bench = new Bench(device, arena, policy, inputs, budget, at);
  const { kvHeads, heads, headDim } = inputs;
  const layer = plainLayer({ hidden: 16, kvHeads, group: heads / kvHeads, headDim }, random("golden policies"));
  await onDevice(device, { layer }, ([handle]) => enqueue(bench, handle as LayerHandle));
  return await read(bench);
}

/** The same queries with a KV head for each: a group of one. */
function ungrouped(inputs: Inputs): Inputs {
  const { heads, kvHeads } = inputs;
  const repeated = (planes: Float32Array) => {
    const size = planes.length / kvHeads;
    const all = new Float32Array(size * heads);
    for (const g of range(heads)) all.set(planes.subarray(Math.floor(g * kvHeads / heads) * size).subarray(0, size), g * size);
    return all;
  };
  return { ...inputs, kvHeads: heads, keys: repeated(inputs.keys), values: repeated(inputs.values) };
}

describe("snapKV keeps what its published code keeps", () => {
  for (const { name, oracle, inputs, options, kept } of snapKVGoldens()) {
    it(`${name} (${oracle})`, async () => {
      const { budget, window, perHead } = options;
      const { length, heads, kvHeads } = inputs;
      const policy = snapKV(options);
      const got = await under(policy, inputs, budget, (bench, layer) => {
        bench.prompt(range(length), layer);
        const due = bench.layer.due?.(length, true, []) ?? 0;
        if (due > 0) bench.layer.build!(bench.k, { slot: 0, begin: 0, rows: due, earlier: [] });
      }, async (bench) => {
        if (!perHead) return await Promise.all(range(kvHeads).map((h) => bench.held(h)));
        const index = await bench.layer.select(bench.k, bench.rows.keys, { rotations: bench.rows.keys }).index!.read();
        return range(heads).map((g) => {
          const recalled = [...index.subarray(g * budget, (g + 1) * budget)].filter((row) => row >= 0);
          return sorted([...recalled, ...range(length - window, length)]);
        });
      });
      assertEquals(got, kept.map((rows) => [...rows]));
    });
  }
});

describe("quest ranks and reads what its published code does", () => {
  for (const { name, inputs, options, rows, kept } of questGoldens()) {
    it(name, async () => {
      const { page, budget } = options;
      const { heads, headDim, q } = inputs;
      const pages = Math.max(3, Math.floor(budget / page));
      const whole = Math.floor((rows - 1) / page) * page; // the page of the newest row is always read, beside the budget
      const index = await under(quest({ page, budget: pages * page, exempt: [] }), inputs, pages * page, (bench) => {
        bench.append(range(rows));
        assertEquals(bench.layer.due!(rows, true, []), whole);
        bench.layer.build!(bench.k, { slot: 0, begin: 0, rows: whole, earlier: [] });
        bench.k.setTail(bench.rows.handle, 0, rows - whole);
      }, async (bench) => {
        const query = bench.tensor([1, heads, headDim], q.slice((rows - 1) * heads * headDim, rows * heads * headDim));
        return await bench.layer.select(bench.k, query, { rotations: query }).index!.read();
      });
      for (const g of range(heads)) {
        const theirs = kept[g].filter((row) => row < whole);
        const ours = [...index.subarray(g * pages * page, (g + 1) * pages * page)].filter((row) => row >= 0);
        assertEquals(sorted(ours.slice(0, theirs.length)), theirs, `head ${g}`); // best pages first
      }
    });
  }
});

describe("chunkKV keeps what its published code keeps", () => {
  // Ours pools nothing beside chunks, and cuts chunks before the window: cases of that form.
  const alike = chunkKVGoldens().filter(({ aligned, options }) => aligned && options.kernel === 1);
  for (const { name, inputs, options: { budget, chunk, window }, kept } of alike) {
    it(name, async () => {
      const got = await under(chunkKV({ budget, chunk, window, reuse: 1 }), inputs, budget, (bench, layer) => {
        bench.prompt(range(inputs.length), layer);
      }, (bench) => Promise.all(range(inputs.kvHeads).map((h) => bench.held(h))));
      assertEquals(got, range(inputs.kvHeads).map(() => [...kept]));
    });
  }
  it("has such cases", () => assertEquals(alike.length >= 2, true));
});

describe("h2o holds what its published code holds", () => {
  for (const { name, inputs, options, prompt, kept, finalKept } of h2oGoldens()) {
    it(name, async () => {
      const { heavy, recent, perHead } = options;
      const own = perHead ? ungrouped(inputs) : inputs;
      const budget = heavy + recent;
      const policy = h2o({ budget, recent: recent / budget });
      const after = (steps: number) =>
        under(policy, own, budget, (bench, layer) => {
          bench.prompt(range(prompt), layer);
          for (let i = prompt; i < prompt + steps; i++) bench.step(i, layer);
        }, (bench) => Promise.all(range(own.kvHeads).map((h) => bench.held(h))));
      assertEquals(await after(0), kept.map((rows) => [...rows]));
      assertEquals(await after(inputs.length - prompt), finalKept.map((rows) => [...rows]));
    });
  }

  for (const { name, inputs, options, kept } of h2oRatesGoldens()) {
    it(`with rates: ${name} (kvpress)`, async () => {
      const { budget } = options;
      const held = await under(h2o({ budget, recent: 0, rates: true }), inputs, budget, (bench, layer) => {
        bench.prompt(range(inputs.length), layer);
      }, (bench) => Promise.all(range(inputs.kvHeads).map((h) => bench.held(h))));
      // Ours always keeps the newest row: it may stand where the peer keeps its least.
      for (const h of range(inputs.kvHeads)) assertLess(held[h].filter((row) => !kept[h].includes(row)).length, 2);
    });
  }
});

describe("pyramidInfer passes on what its published code does", () => {
  for (const { name, inputs, options, prompt, layers, entered } of pyramidInferGoldens()) {
    it(name, async () => {
      for (const layer of range(layers - 1)) {
        let kept: Kept | undefined;
        const passed = await under(pyramidInfer(options), inputs, 0, (bench, handle) => {
          kept = bench.prompt(entered[layer], handle, prompt);
        }, async () => {
          if (!kept) return [...entered[layer]];
          assertEquals(kept.of, "deeper");
          return [...await kept.keep.read(0, kept.count)].map((row) => entered[layer][row]);
        }, { layer, layers });
        assertEquals(passed, [...entered[layer + 1]], `layer ${layer}`);
      }
    });
  }
});

describe("infiniGen guesses and reads what its published code does", () => {
  for (const { name, inputs, options, prompt, skew, chosen } of infiniGenGoldens()) {
    it(name, async () => {
      const { kvHeads, heads, headDim } = inputs;
      const bases = new LayerBases("skew", [kvHeads, headDim, headDim], [skew, skew]);
      const index = await under(infiniGen({ ...options, skew: bases }), inputs, options.budget, (bench, layer) => {
        bench.prompt(range(prompt), layer);
        bench.layer.build!(bench.k, { slot: 0, begin: 0, rows: bench.layer.due!(prompt, true, []), earlier: [] });
        bench.k.setTail(bench.rows.handle, 0, 1);
      }, async (bench) => {
        const query = bench.tensor([1, heads, headDim], vector(inputs.q, prompt, heads * headDim).slice());
        bench.layer.foresee!(bench.k, (to) => bench.k.copy(to, 0, query, 0, heads));
        return await bench.layer.select(bench.k, query, { rotations: query }).index!.read();
      });
      for (const g of range(heads)) {
        const ours = [...index.subarray(g * options.budget, (g + 1) * options.budget)].filter((row) => row >= 0);
        // The newest row of the prompt is in our tail, and not ranked. How many rows are read differs: ours counts a head's rows up to the budget
        // before it takes the mean, and rounds it.
        const theirs = chosen[g].filter((row) => row < prompt - 1);
        const both = Math.min(ours.length, theirs.length);
        assertLess(theirs.length / 2, both);
        assertEquals(ours.slice(0, both), theirs.slice(0, both), `head ${g}`);
      }
    });
  }
});

describe("sals reads what a transcription of its paper reads", () => {
  const [rows, kvHeads, heads, headDim, sink, budget, rank] = [121, 2, 4, 32, 4, 30, 24];
  const next = random("sals");
  const vectors = (count: number, width: number) => range(count).map(() => range(width).map(() => Math.fround(next.normal())));
  // Keys of low rank and some noise, so that directions are far from alike.
  const [mixed, mixer] = [vectors(rows, 6), vectors(6, kvHeads * headDim)];
  const keys = mixed.map((row) =>
    range(kvHeads * headDim).map((d) => row.reduce((sum, x, i) => sum + x * mixer[i][d], 0.2 * next.normal()))
  );
  const [values, q] = [vectors(rows, kvHeads * headDim), vectors(heads, headDim)];

  it("in the leading directions, and with the keys that come back from them", async () => {
    const projection = salsProjection(keys, rank);
    const position = rows - 1;
    const numbers = {
      heads,
      kvHeads,
      headDim,
      base: 10_000,
      keys,
      values,
      q,
      position,
      projection,
      ranked: rank / 2,
      budget,
      sink,
      tail: position,
    };
    const want = transcribed(numbers);
    const turned = (vector: readonly number[], at: number) => {
      const table = rotations([at], headDim);
      const half = headDim / 2;
      return range(headDim).map((d) => {
        const [c, s] = [table[d % half], table[half + d % half]];
        return d < half ? vector[d] * c - vector[d + half] * s : vector[d] * c + vector[d - half] * s;
      });
    };
    const planes = (all: readonly (readonly number[])[], turn: boolean) =>
      Float32Array.from(
        range(kvHeads).flatMap((h) =>
          all.flatMap((row, i) => {
            const own = row.slice(h * headDim, (h + 1) * headDim);
            return turn ? turned(own, i) : own;
          })
        ),
      );
    const inputs = {
      length: rows,
      kvHeads,
      heads,
      headDim,
      q: new Float32Array(rows * heads * headDim),
      keys: planes(keys, true),
      values: planes(values, false),
    };
    const bases = new LayerBases("projection", [kvHeads * headDim, rank], new Array(8).fill(Float32Array.from(projection.flat())));
    const policy = sals({ projection: bases, budget, rank: rank / (kvHeads * headDim), ranked: 0.5, sink, exempt: [] });
    const results: Tensor[] = [];
    const [index, attended] = await under(policy, inputs, budget, (bench, layer) => {
      const { k } = bench;
      bench.append(range(position));
      const prompt = bench.attention(range(position), 0, layer, position);
      bench.layer.observe!(k, { ...prompt, rotations: bench.tensor([position, 2, headDim / 2], rotations(range(position), headDim)) });
      bench.layer.build!(k, { slot: 0, begin: sink, rows: bench.layer.due!(position - sink, true, []), earlier: [] });
      bench.append([position]);
      k.setTail(bench.rows.handle, sink, 1);
      const query = bench.tensor([1, heads, headDim], Float32Array.from(q.flatMap((one) => turned(one, position))));
      const step = bench.tensor([1, 2, headDim / 2], rotations([position], headDim));
      const { centroids, means, bias, rows: chosen } = bench.layer.select(k, query, { rotations: step }).estimates!;
      const [out, lse] = [bench.tensor([1, heads, headDim]), bench.tensor([1, heads])];
      const work = bench.tensor([heads * 8 * (headDim + 2)]);
      k.attend(out, lse, query, bench.rows.handle, layer, null, work, sink);
      k.attendEstimates(out, lse, query, bench.rows.handle, layer, centroids, means, bias, work);
      results.push(chosen!, out);
    }, () => Promise.all(results.map((tensor) => tensor.read())));
    assertEquals([...index.subarray(0, budget)], want.chosen);
    for (const [g, one] of want.attended.entries()) {
      for (const [d, x] of one.entries()) assertLess(Math.abs(attended[g * headDim + d] - x), 1e-4);
    }
  });
});
