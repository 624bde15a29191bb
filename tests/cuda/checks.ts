/** What must hold of the CUDA device, as a list: cuda.test.ts runs it as tests, check.ts as a program that counts. */
import { assert, assertEquals, assertLess } from "@std/assert";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { randomModel } from "../../bench/cuda_model.ts";
import { type Device, isas, open } from "../../lib/device.ts";
import { load, type LoadedModel } from "../../lib/model.ts";
import { clusterKV } from "../../lib/policies/cluster_kv.ts";
import type { SessionOptions } from "../../lib/session.ts";
import type { KvDType } from "../../lib/types.ts";
import { runCase } from "../cases/device.ts";
import { type Args, type Case, exact, tensorsOf } from "../cases/case.ts";
import { decode as decodeBytes } from "../cases/codec.ts";
import { activeSlots, kvRows, layer, tensor, unwritten, work } from "../cases/inputs.ts";
import { faults } from "../cases/judge.ts";
import { table } from "../cases/mod.ts";
import { type Random, random } from "../cases/random.ts";
import { ggufOf } from "../golden/tiny/gguf.ts";
import { ggufCases } from "../golden/tiny/shapes.ts";
import { contestants } from "../policies/contestants.ts";
import { capacity, contract, length, steps } from "../policies/contract.ts";
import { nano, proseTokens } from "../support/nano.ts";
import { decode, fresh, largestDifference, type Run } from "../support/run.ts";

export interface Check {
  readonly group: string;
  readonly name: string;
  /** Numbers that it works on, where that is known: for running small ones first. */
  readonly size?: () => number;
  run(): Promise<void>;
}

let device: Promise<Device> | undefined;
let onDevice: Promise<LoadedModel> | undefined;

export async function cuda(): Promise<Device> {
  return await (device ??= open("cuda"));
}

/** A CPU that leaves activations in f32, whatever the weights are. */
function exactCpu(): Promise<Device> {
  return open("cpu", { isa: isas().find((isa) => isa !== "avx512bf16") });
}

/** The nano model on the GPU. */
function cudaNano(): Promise<LoadedModel> {
  return onDevice ??= cuda().then((device) => load(fileURLToPath(new URL("../../models/nano", import.meta.url)), { device }));
}

/** Every case of the table, twice: against the reference, and against itself. */
function caseTable(): Check[] {
  return table.map((one) => ({
    group: "cases",
    name: `${one.op}: ${one.name}`,
    size: () => tensorsOf(one.make()).reduce((sum, { tensor }) => sum + tensor.data.length, 0),
    async run() {
      const outcome = await runCase(await cuda(), one);
      assertEquals(faults(one, outcome), []);
      const again = await runCase(await cuda(), one);
      for (const [name, bytes] of outcome) assertEquals(again.get(name), bytes, `${name} differs from run to run`);
    },
  }));
}

/** What every policy promises, and that the GPU decodes what the CPU does. */
function policies(): Check[] {
  const check = (name: string, run: () => Promise<void>): Check => ({ group: "policies", name, run });
  return contestants.flatMap((contestant) => [
    ...contract(contestant, cudaNano).map(({ name, run }) => check(`${contestant.name} ${name}`, run)),
    check(`${contestant.name} in F32 decodes what it decodes on the CPU`, async () => {
      const [there, here, prompt] = [await nano({ weights: "f32" }), await cudaNano(), await proseTokens(length)];
      const options = () => ({ kv: contestant.small(), capacity, kvDtype: "f32" as const });
      assertAlike(await fresh(here, options(), prompt, steps), await fresh(there, options(), prompt, steps));
    }),
  ]);
}

/** Two devices sum in other orders: the same tokens, and logits to what that makes of them. */
function assertAlike(got: Run, want: Run): void {
  assertEquals(got.tokens, want.tokens);
  assertLess(largestDifference(got.logits, want.logits), 2e-3);
}

/** Greedy identity with the CPU over F32 rows: the nano model's golden prompts, and a tiny model of every file type. */
function identity(): Check[] {
  const { prompts } = JSON.parse(readFileSync(new URL("../golden/nano/transformers-f32.json", import.meta.url), "utf8")) as {
    prompts: { name: string; tokens: number[]; greedy: number[] }[];
  };
  const options: SessionOptions = { kvDtype: "f32", capacity: 2048 };
  const golden = prompts.map(({ name, tokens, greedy }): Check => ({
    group: "identity",
    name: `nano continues "${name}" as transformers does: the same 64 tokens`,
    async run() {
      assertEquals((await fresh(await cudaNano(), options, tokens, 64)).tokens, greedy);
    },
  }));
  const tiny = ggufCases.map((one): Check => ({
    group: "identity",
    name: `${one.name} gives the CPU's logits`,
    async run() {
      const folder = await mkdtemp(join(tmpdir(), "recallkv-cuda-"));
      const path = join(folder, "tiny.gguf");
      try {
        await writeFile(path, ggufOf(one)[0]);
        const prompt = Array.from({ length: 100 }, (_, i) => (i * 37) % 2000);
        const cpu = await exactCpu();
        using there = await load(path, { device: cpu, onWarning: () => {} });
        using here = await load(path, { device: await cuda(), onWarning: () => {} });
        const [got, want] = [await firstLogits(here, prompt), await firstLogits(there, prompt)];
        // The CPU multiplies what is quantised with activations of 8 bits.
        const apart = Math.hypot(...got.map((x, i) => x - want[i])) / Math.hypot(...want);
        assertLess(apart, /-(F32|F16|BF16)$/.test(one.name) ? 1e-4 : 0.1);
        cpu[Symbol.dispose]();
      } finally {
        await rm(folder, { recursive: true });
      }
    },
  }));
  return [...golden, ...tiny];
}

/** Long chunks go on tensor cores, whose operands are halves: near the CPU's f32, by the norm of the difference. */
function halves(): Check[] {
  const close = async (args: () => Args, op: "attnIn" | "attnOut" | "attendChunk", outputs: string[]) => {
    const one: Case = { op, name: "", within: exact, make: args };
    const cpu = await exactCpu();
    const [want, got, again] = [await runCase(cpu, one), await runCase(await cuda(), one), await runCase(await cuda(), one)];
    cpu[Symbol.dispose]();
    for (const { name, tensor } of tensorsOf(args()).filter(({ name }) => outputs.includes(name))) {
      const [a, b] = [want, got].map((outcome) => decodeBytes(tensor.dtype, outcome.get(name)!, tensor.shape.at(-1)!));
      let [difference, size] = [0, 0];
      a.forEach((x, i) => {
        if (Number.isNaN(x) && Number.isNaN(b[i])) return; // what neither wrote
        difference += (x - b[i]) ** 2;
        size += x ** 2;
      });
      assertLess(Math.sqrt(difference / size), 1e-2, name);
      assertEquals(again.get(name), got.get(name), `${name} differs from run to run`);
    }
  };
  const widths = [{ hidden: 512, kvHeads: 2, group: 4, headDim: 64, intermediate: 1088 }, {
    hidden: 576,
    kvHeads: 1,
    group: 5,
    headDim: 128,
    intermediate: 640,
  }];
  return widths.flatMap((width) =>
    (["bf16", "f16"] as const).flatMap((type): Check[] => {
      const [count, capacity, before] = [197, 420, 131];
      const heads = width.kvHeads * width.group;
      const wide = { ...width, weights: type, biases: true };
      const input = (random: Random, shape: number[]) => tensor("f32", shape, random.normal);
      const check = (op: string, run: () => Promise<void>): Check => ({ group: "halves", name: `${op} ${type} ${width.hidden}`, run });
      return [
        check("attnIn", () =>
          close(
            () => {
              const r = random(`attnIn ${type} ${width.hidden}`);
              return {
                q: unwritten("f32", [count, heads, width.headDim]),
                rows: kvRows({ lengths: [before], kvHeads: width.kvHeads, headDim: width.headDim, capacity, dtype: type }, r),
                x: input(r, [count, width.hidden]),
                layer: layer(wide, r),
                rotations: input(r, [count, 2, width.headDim / 2]),
                position: tensor("i32", [count], (i) => before + i),
                work: work(count * (width.hidden + 2 * width.kvHeads * width.headDim)),
                slot: 0,
                count,
              };
            },
            "attnIn",
            ["q", "rows.keys", "rows.values"],
          )),
        check("attnOut", () =>
          close(
            () => {
              const r = random(`attnOut ${type} ${width.hidden}`);
              return {
                x: input(r, [count, width.hidden]),
                attended: input(r, [count, heads, width.headDim]),
                layer: layer(wide, r),
                active: null,
                work: work(count * (width.hidden + 2 * width.intermediate)),
                count,
              };
            },
            "attnOut",
            ["x"],
          )),
        ...[{}, { window: 77 }, { softCap: 3 }].map((more) =>
          check(`attendChunk ${JSON.stringify(more)}`, () =>
            close(
              () => {
                const r = random(`attendChunk ${type} ${width.hidden}`);
                return {
                  attended: unwritten("f32", [count, heads, width.headDim]),
                  lse: unwritten("f32", [count, heads]),
                  q: input(r, [count, heads, width.headDim]),
                  rows: kvRows({ lengths: [before + count], kvHeads: width.kvHeads, headDim: width.headDim, capacity, dtype: type }, r),
                  layer: layer({ ...width, hidden: 16, intermediate: 16, ...more }, r),
                  slot: 0,
                  count,
                };
              },
              "attendChunk",
              ["attended", "lse"],
            ))
        ),
      ];
    })
  );
}

/** The same without cuBLASLt, where the checks above had it: in a process of its own, for the library is looked for once. */
function ownProducts(): Check[] {
  return [{
    group: "own products",
    name: "long chunks on tensor cores, without cuBLASLt",
    async run() {
      if (!(await cuda()).description.includes("cuBLASLt")) return;
      const [map, program] = ["../../lib/std/import_map.json", "check.ts"].map((path) => fileURLToPath(new URL(path, import.meta.url)));
      const flags = "Deno" in globalThis ? ["run", "-A", `--import-map=${map}`] : ["run"];
      const env = { ...process.env, RECALLKV_CUBLASLT: "none" };
      const { status, stdout } = spawnSync(process.execPath, [...flags, program, "halves"], { encoding: "utf8", env });
      assertEquals(status, 0, stdout);
      assert(!stdout.includes("cuBLASLt"), stdout);
    },
  }];
}

/** What a slot computes is the same to the bit, however many others there are, and however many there is room for. */
function slots(): Check[] {
  const taken = [[0], [3], [0, 1, 2, 3, 4, 5, 6], [3, 9, 10, 11, 12, 13, 14, 15, 16], Array.from({ length: 40 }, (_, i) => i)];
  const [most, hidden] = [41, 512];
  const run = async (weights: "bf16" | "f16", intermediate: number, active: readonly number[], count: number): Promise<Uint8Array> => {
    const r = random(`slots ${weights}`);
    const [x, attended] = [r, r].map(() => Float32Array.from({ length: most * hidden }, r.normal));
    const args = {
      x: tensor("f32", [count, hidden], (i) => x[i]),
      attended: tensor("f32", [count, 8, 64], (i) => attended[i]),
      layer: layer({ hidden, kvHeads: 2, group: 4, headDim: 64, intermediate, weights }, r),
      active: activeSlots(count, Array.from({ length: count }, (_, i) => i).filter((i) => !active.includes(i))),
      work: work(count * (hidden + 2 * intermediate)),
      count,
    };
    return (await runCase(await cuda(), { op: "attnOut", name: "", within: exact, make: () => args })).get("x")!;
  };
  const rows = (["bf16", "f16"] as const).flatMap((weights) =>
    [1088, 1120].flatMap((intermediate) =>
      // whole lines of 128 bytes, and not
      taken.map((taking): Check => ({
        group: "slots",
        name: `of ${taking.length} from ${taking[0]} on, ${weights}, ${intermediate} wide`,
        async run() {
          const together = await run(weights, intermediate, taking, taking.at(-1)! + 1);
          for (const slot of [taking[0], taking.at(-1)!]) {
            for (const count of [slot + 1, most]) {
              const alone = await run(weights, intermediate, [slot], count);
              const row = [slot * hidden * 4, (slot + 1) * hidden * 4];
              assertEquals(together.slice(...row), alone.slice(...row));
            }
          }
        },
      }))
    )
  );
  const small = { name: "small", layers: 3, hidden: 512, heads: 8, kvHeads: 2, headDim: 64, intermediate: 1088, vocab: 1999, tied: true };
  const few = { budget: 64, tokensPerCluster: 16, segment: 128, every: 64, exempt: [1] };
  const recorded = (slots: number, what = "", shape = small, clusters = few, kvDtype: KvDType = "bf16", length = 300): Check => ({
    group: "slots",
    name: `a recorded step of ${slots}${what} gives what one op by op does`,
    async run() {
      using model = await randomModel(await cuda(), shape);
      const prompt = Array.from({ length }, (_, i) => (i * 37) % 1999);
      const runs = [];
      for (const eager of [false, true]) {
        const kv = clusterKV(clusters);
        using session = model.session({ kv, eager, slots, capacity: length + 200, kvDtype, chunk: 100 });
        for (let slot = 0; slot < slots; slot++) await session.prefill(prompt.slice(slot), { slot });
        const tokens = [];
        for await (const { token } of session.decode({ maxTokens: 24, stop: [] })) tokens.push(token);
        for await (const { token } of session.decode({ slots: [slots - 1], maxTokens: 3, stop: [] })) tokens.push(token); // the others idle
        runs.push({ tokens, first: await session.logits({ slot: 0 }), last: await session.logits({ slot: slots - 1 }) });
      }
      assertEquals(runs[0], runs[1]);
    },
  });
  const sevens = { ...small, hidden: 448, heads: 14 };
  const large = { ...small, heads: 32, kvHeads: 8, headDim: 128 };
  const many = { budget: 700, tokensPerCluster: 2, segment: 500, every: 64, exempt: [1] };
  const sessions = [
    ...[1, 8, 12, 40].map((slots) => recorded(slots)),
    recorded(1, " with groups of seven and rows in f16", sevens, few, "f16"),
    recorded(3, " with groups of seven and 128 channels", { ...sevens, headDim: 128 }),
    recorded(1, " over many clusters", large, many, "bf16", 1600),
    recorded(9, " over many clusters", large, many, "bf16", 1600),
    recorded(2, " with 8-bit rows", small, few, "q8"),
  ];
  return [...rows, ...sessions];
}

/** Segments that are clustered beside the next chunks are those that are clustered in turn: with its clock on, a device runs op by op. */
function beside(): Check[] {
  return (["f32", "bf16"] as const).map((kvDtype) => ({
    group: "beside",
    name: `clusters of ${kvDtype} rows made beside chunks are those made in turn`,
    async run() {
      const prompt = await proseTokens(1500);
      const kv = clusterKV({ budget: 96, tokensPerCluster: 16, segment: 192, every: 64, exempt: [], bound: 0.3 });
      const decoded: Run[] = [];
      for (const inTurn of [true, false, false]) {
        using session = (await cudaNano()).session({ kv, kvDtype, capacity: 2048, chunk: 128, slots: 2 });
        session.clock(inTurn);
        await session.prefill(prompt, { slot: 0 });
        await session.prefill(prompt.slice(0, 700), { slot: 1 });
        decoded.push(await decode(session, 40, 0), await decode(session, 40, 1));
      }
      for (let i = 2; i < decoded.length; i++) assertEquals(decoded[i], decoded[i % 2]);
    },
  }));
}

async function firstLogits(model: LoadedModel, prompt: readonly number[]): Promise<Float32Array> {
  using session = model.session({ kvDtype: "f32", capacity: 512 });
  await session.prefill(prompt);
  await decode(session, 1);
  return await session.logits();
}

/** Memory is promised, refused and given back as on the CPU. */
function memory(): Check[] {
  const check = (name: string, run: () => Promise<void>): Check => ({ group: "memory", name, run });
  return [
    check("rows that do not fit are refused with what was needed and what is free, and work goes on", async () => {
      const device = await cuda();
      const { free } = device.memory();
      using arena = device.arena(free * 4);
      const held = arena.tensor("f32", [4]);
      held.write(Float32Array.of(1, 2, 3, 4));
      const rows = Math.ceil((free * 2) / 4096);
      const large = arena.tensor("f32", [1, 1, rows, 1024]);
      let refused: { code?: string; message?: string } = {};
      try {
        large.commit(rows);
      } catch (error) {
        refused = error as typeof refused;
      }
      assertEquals(refused.code, "RKV_MEMORY");
      assert(/needed.*free/.test(refused.message ?? ""), refused.message);
      assertEquals([...await held.read()], [1, 2, 3, 4]);
    }),
    check("rows that are given back come back as zeros, and their pages go", async () => {
      using arena = (await cuda()).arena(1 << 30);
      const rows = 1 << 16;
      const tensor = arena.tensor("f32", [2, 1, rows, 256]);
      tensor.commit(rows);
      const before = arena.memory().committed;
      tensor.write(new Float32Array(256).fill(7), (rows - 1) * 256);
      tensor.release(0, 0);
      await arena.fence();
      assert(arena.memory().committed < before);
      tensor.commit(rows, 0);
      assertEquals(await tensor.read((rows - 1) * 256, 256), new Float32Array(256));
      tensor.release(0, 0);
      tensor.commit(rows, 0);
      tensor.write(Float32Array.of(5), 3);
      await arena.fence();
      assertEquals([...await tensor.read(2, 2)], [0, 5]);
    }),
  ];
}

export const checks: readonly Check[] = [
  ...caseTable(),
  ...halves(),
  ...ownProducts(),
  ...slots(),
  ...beside(),
  ...memory(),
  ...identity(),
  ...policies(),
];
