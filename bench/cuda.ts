/**
 * Benchmarks recallkv on an NVIDIA GPU with random weights of known shapes, against the machine's limits in the same run:
 *   bun run bench/cuda.ts [--shape 8B|1B] [--length 4096,32768,131072] [--slots 1,8,32] [--policy full,1k,"1k all",2k] [--json FILE]
 *     [--chunk 4096] [--steps 64] [--no-shares]
 * Attended rows include sink and tail; bytes are weights, keys and values that a step reads, and centroids. What does not fit the memory is
 * left out by name. --no-shares: without the prompts and steps that are read op by op to tell what clustering and choosing take.
 */
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "@std/cli/parse-args";
import { type Device, open } from "../lib/device.ts";
import type { LoadedModel } from "../lib/model.ts";
import { clusterKV } from "../lib/policies/cluster_kv.ts";
import { full } from "../lib/policies/full.ts";
import type { Policy } from "../lib/policies/policy.ts";
import type { Session } from "../lib/session.ts";
import { attentionOps, copyRate, productOps, productRate, randomModel, type Shape, shapes, stepBytes } from "./cuda_model.ts";
import { manual } from "./manual.ts";
import { median } from "./numbers.ts";
import { choosing, clocked, clustering } from "./shares.ts";

interface Reading {
  readonly budget: number;
  readonly exempt: readonly number[];
  readonly kv: () => Policy;
}

manual(import.meta.url);
const clusters = (budget: number, exempt: number[]): Reading => ({ budget, exempt, kv: () => clusterKV({ budget, exempt }) });
const readings: Readonly<Record<string, Reading>> = {
  full: { budget: 0, exempt: [], kv: full },
  "1k": clusters(1024, [0, 1]),
  "1k all": clusters(1024, []),
  "2k": clusters(2048, [0, 1]),
  "2k all": clusters(2048, []),
};
const args = parseArgs(process.argv.slice(2), {
  string: ["shape", "length", "slots", "policy", "json", "chunk", "steps"],
  boolean: ["shares"],
  negatable: ["shares"],
  default: { shares: true, length: "4096,32768,131072", slots: "1,8,32", policy: "full,1k,1k all,2k", chunk: "4096", steps: "64" },
});
const [lengths, slotCounts] = [args.length, args.slots].map((list) => list.split(",").map(Number));
const [chunk, steps] = [Number(args.chunk), Number(args.steps)];

interface Row {
  readonly what: "prefill" | "decode";
  readonly model: string;
  readonly weights: "bf16";
  readonly context: number;
  readonly slots: number;
  readonly policy: "full" | "clusterKV";
  readonly budget: number;
  readonly exempt: readonly number[];
  /** Tokens per second, of all slots together. */
  readonly ours: number;
  readonly peer: null;
  readonly ratio: null;
  /** The least time that the limits allow, as a share of ours. */
  readonly floorShare: number;
  readonly ms: number;
  /** Of decoding: bytes that a step reads. */
  readonly bytes?: number;
  /** Of decoding: microseconds that starting a recorded step takes on the host. */
  readonly hostMicroseconds?: number;
  /** Op by op: choosing's share of a step, clustering's of a prompt; and what a prompt took beyond the full cache's in the same run. */
  readonly selectShare?: number;
  readonly clusteringShare?: number;
  readonly beyondFull?: number;
}

/** Tokens of a text that has no meaning. */
function noise(length: number, slot: number): number[] {
  let state = 12345 + 777 * slot;
  return Array.from({ length }, () => (state = (Math.imul(state, 1103515245) + 12345) >>> 0) % 100000);
}

async function rowsRead(session: Session, slots: number): Promise<number> {
  let rows = 0;
  for (let slot = 0; slot < slots; slot++) {
    const { sink, index, tail, estimates } = await session.attended(slot);
    rows += sink + index + tail + estimates;
  }
  return rows;
}

/** Milliseconds from token to token of the last slot. */
async function stepTimes(session: Session, slots: number, count: number): Promise<number[]> {
  const times: number[] = [];
  let last = performance.now();
  for await (const { slot } of session.decode({ maxTokens: count, stop: [] })) {
    if (slot < slots - 1) continue;
    times.push(performance.now() - last);
    last = performance.now();
  }
  return times;
}

/** Clustering's share of a prompt of one slot that is read op by op. */
async function clusteringShare(model: LoadedModel, reading: Reading, length: number): Promise<number> {
  using session = model.session({ kv: reading.kv(), capacity: length + 512, chunk: Math.min(chunk, length) });
  const { part, all } = await clocked(session, clustering, () => session.prefill(noise(length, 0)));
  return part / all;
}

interface Measured {
  readonly prefillMs: number;
  readonly stepMs: number;
  readonly bytes: number;
  readonly hostMicroseconds: number;
  readonly selectShare?: number;
}

async function measure(model: LoadedModel, shape: Shape, { kv }: Reading, length: number, slots: number): Promise<Measured> {
  using session = model.session({ kv: kv(), capacity: length + 512, slots, chunk: Math.min(chunk, length) });
  const prompts: number[] = [];
  for (let slot = 0; slot < slots; slot++) {
    const begun = performance.now();
    await session.prefill(noise(length, slot), { slot });
    prompts.push(performance.now() - begun);
  }
  await stepTimes(session, slots, 8); // the graph is made here
  session.clock("replays");
  const before = await rowsRead(session, slots);
  const times = await stepTimes(session, slots, steps);
  const read = (await rowsRead(session, slots) - before) / (times.length - 1);
  let bytes = stepBytes(shape) + read * shape.headDim * 4;
  for (let slot = 0; slot < slots; slot++) bytes += session.selectBytes(slot);
  const { replay } = await session.times();
  const measured = {
    prefillMs: median(prompts),
    stepMs: median(times),
    bytes,
    hostMicroseconds: 1e6 * replay.seconds / replay.runs,
  };
  if (!args.shares) return measured;
  const { part, all } = await clocked(session, choosing, () => stepTimes(session, slots, 5));
  return { ...measured, selectShare: part / all };
}

const say = (text: string) => console.log(text);
const percent = (share: number) => `${(100 * share).toFixed(1)} %`;

/** Bytes that a session of a shape wants: rows in bf16, and a little for what is beside them. */
const sessionBytes = ({ layers, kvHeads, headDim }: Shape, length: number, slots: number) =>
  slots * (length + 512) * layers * kvHeads * headDim * 4 * 1.03 + 6e9;

/** When what was closed before has given its memory back. */
async function settled(device: Device): Promise<void> {
  using arena = device.arena(1 << 20);
  await arena.fence();
}

const device: Device = await open("cuda");
const copy = await copyRate(device);
const commit = (() => {
  try {
    const folder = fileURLToPath(new URL(".", import.meta.url));
    return execFileSync("git", ["-C", folder, "rev-parse", "--short", "HEAD"], { stdio: ["ignore", "pipe", "ignore"] }).toString().trim();
  } catch {
    return null; // a copy of the sources without their history
  }
})();
const rows: Row[] = [];
const limits: { copy: number; products: Record<string, number> } = { copy, products: {} };
say(`${device.description}: copy ${(copy / 1e12).toFixed(2)} TB/s`);

for (const shape of shapes.filter(({ name }) => !args.shape || name.endsWith(args.shape))) {
  const loading = performance.now();
  using model = await randomModel(device, shape);
  const products = await productRate(device, model, shape);
  limits.products[shape.name] = products;
  say(
    `${shape.name}: loaded in ${((performance.now() - loading) / 1e3).toFixed(1)} s; ${
      (stepBytes(shape) / 1e9).toFixed(2)
    } GB of weights a step; ` +
      `products of a layer at ${(products / 1e12).toFixed(0)} TFLOP/s`,
  );
  for (const length of lengths) {
    const shares = new Map<string, number>();
    for (const slots of slotCounts) {
      await settled(device);
      if (sessionBytes(shape, length, slots) > device.memory().free) {
        say(`${length} x ${slots}: left out, ${(sessionBytes(shape, length, slots) / 1e9).toFixed(0)} GB do not fit`);
        continue;
      }
      let fullMs: number | undefined;
      for (const name of args.policy.split(",")) {
        const reading = readings[name];
        if (args.shares && reading.budget > 0 && !shares.has(name)) shares.set(name, await clusteringShare(model, reading, length));
        const { prefillMs, stepMs, bytes, hostMicroseconds, selectShare } = await measure(model, shape, reading, length, slots);
        if (name === "full") fullMs = prefillMs;
        const policy = name === "full" ? "full" as const : "clusterKV" as const;
        const { budget, exempt } = reading;
        const of = { model: shape.name, weights: "bf16", context: length, slots, policy, budget, exempt, peer: null, ratio: null } as const;
        const ops = productOps(shape, length) + attentionOps(shape, length);
        const beyondFull = policy === "full" || fullMs === undefined ? undefined : prefillMs / fullMs - 1;
        const floorShare = bytes / copy * 1e3 / stepMs;
        const clusteringOf = shares.get(name);
        rows.push({
          what: "prefill",
          ...of,
          ours: 1e3 * length / prefillMs,
          ms: prefillMs,
          floorShare: ops / products * 1e3 / prefillMs,
          clusteringShare: clusteringOf,
          beyondFull,
        });
        rows.push({
          what: "decode",
          ...of,
          ours: 1e3 * slots / stepMs,
          ms: stepMs,
          floorShare,
          bytes,
          hostMicroseconds,
          selectShare: budget > 0 ? selectShare : undefined,
        });
        say(
          [
            `${name.padEnd(7)} ${length} x ${slots}: prefill ${prefillMs.toFixed(0)} ms (${(ops / prefillMs / 1e9).toFixed(0)} TFLOP/s)`,
            clusteringOf === undefined ? "" : `, clustering ${percent(clusteringOf)} op by op`,
            beyondFull === undefined ? "" : `, ${percent(beyondFull)} beyond full`,
            `; step ${stepMs.toFixed(3)} ms, floor ${(bytes / copy * 1e3).toFixed(3)} ms (${(bytes / 1e9).toFixed(2)} GB), ${
              percent(floorShare)
            }`,
            `, ${hostMicroseconds.toFixed(1)} us of the host`,
            budget > 0 && selectShare !== undefined ? `, choosing ${percent(selectShare)} op by op` : "",
          ].join(""),
        );
      }
    }
  }
}
if (args.json) {
  writeFileSync(
    args.json,
    `${JSON.stringify({ machine: device.description, date: new Date().toISOString(), commit, limits, rows }, null, 1)}\n`,
  );
}
process.exit(0);
