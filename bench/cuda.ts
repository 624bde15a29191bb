/**
 * An NVIDIA GPU: prefill and decoding of known shapes with random weights, dense and over clusters, against what the memory's bandwidth
 * allows: `bun run bench/cuda.ts [--shape 8B|1B] [--length 4096,32768] [--slots 1,8] [--policy full,1k] [--json FILE]`.
 * Attended rows include sink and tail; bytes are weights, keys and values that a step reads, and centroids.
 */
import { writeFileSync } from "node:fs";
import process from "node:process";
import { parseArgs } from "@std/cli/parse-args";
import { type Device, open } from "../lib/device.ts";
import type { LoadedModel } from "../lib/model.ts";
import { clusterKV } from "../lib/policies/cluster_kv.ts";
import { full } from "../lib/policies/full.ts";
import type { Policy } from "../lib/policies/policy.ts";
import type { Session } from "../lib/session.ts";
import { attentionOps, productOps, randomModel, type Shape, shapes, stepBytes } from "./cuda_model.ts";

const policies: Record<string, () => Policy> = {
  full,
  "1k": () => clusterKV({ budget: 1024 }),
  "1k all": () => clusterKV({ budget: 1024, exempt: [] }),
  "2k": () => clusterKV({ budget: 2048 }),
};

const args = parseArgs(process.argv.slice(2), {
  string: ["shape", "length", "slots", "policy", "json", "chunk", "steps"],
});
const list = (text: string | undefined, otherwise: string) => (text ?? otherwise).split(",");
const lengths = list(args.length, "4096,32768").map(Number);
const slotCounts = list(args.slots, "1,8").map(Number);
const chosen = list(args.policy, "full,1k,1k all,2k");
const [chunk, steps] = [Number(args.chunk ?? 4096), Number(args.steps ?? 64)];

interface Row {
  shape: string;
  policy: string;
  length: number;
  slots: number;
  prefillMs: number;
  stepMs: number;
  bytes: number;
  floorMs: number;
}

const clock = () => performance.now();
const median = (times: number[]) => times.sort((a, b) => a - b)[times.length >> 1];

/** Bytes per second of a copy between two parts of memory, read and written. */
async function bandwidth(device: Device): Promise<number> {
  using arena = device.arena(10 * 2 ** 30);
  const rows = 1 << 20;
  const [from, to] = [
    arena.tensor("f32", [rows, 1024]),
    arena.tensor("f32", [rows, 1024]),
  ];
  from.commit(rows);
  to.commit(rows);
  const times: number[] = [];
  for (let i = 0; i < 8; i++) {
    await arena.fence();
    const begun = clock();
    for (let j = 0; j < 4; j++) device.kernels.copy(to, 0, from, 0, rows);
    await arena.fence();
    times.push((clock() - begun) / 4000);
  }
  return (2 * rows * 4096) / median(times);
}

/** Tokens of a text that has no meaning. */
function noise(length: number, slot: number): number[] {
  let state = 12345 + 777 * slot;
  return Array.from(
    { length },
    () => (state = (Math.imul(state, 1103515245) + 12345) >>> 0) % 100000,
  );
}

async function rowsRead(session: Session, slots: number): Promise<number> {
  let rows = 0;
  for (let slot = 0; slot < slots; slot++) {
    const { sink, index, tail, estimates } = await session.attended(slot);
    rows += sink + index + tail + estimates;
  }
  return rows;
}

async function measure(
  model: LoadedModel,
  shape: Shape,
  name: string,
  length: number,
  slots: number,
  rate: number,
): Promise<Row> {
  using session = model.session({
    kv: policies[name](),
    capacity: length + 512,
    slots,
    chunk: Math.min(chunk, length),
  });
  const begun = clock();
  for (let slot = 0; slot < slots; slot++) {
    await session.prefill(noise(length, slot), { slot });
  }
  const prefillMs = (clock() - begun) / slots;
  for await (
    const _ of session.decode({ maxTokens: 8, stop: [] })
  ) { /* warm: the graph is made here */ }
  const before = await rowsRead(session, slots);
  const times: number[] = [];
  let last = clock();
  for await (const { slot } of session.decode({ maxTokens: steps, stop: [] })) {
    if (slot < slots - 1) continue;
    times.push(clock() - last);
    last = clock();
  }
  const read = ((await rowsRead(session, slots)) - before) / (times.length - 1);
  let bytes = stepBytes(shape) + read * shape.headDim * 4;
  for (let slot = 0; slot < slots; slot++) bytes += session.selectBytes(slot);
  return {
    shape: shape.name,
    policy: name,
    length,
    slots,
    prefillMs,
    stepMs: median(times),
    bytes,
    floorMs: (bytes / rate) * 1e3,
  };
}

const device = await open("cuda");
const rate = await bandwidth(device);
console.log(`${device.description}: copy ${(rate / 1e12).toFixed(2)} TB/s`);
const results: Row[] = [];
for (
  const shape of shapes.filter(({ name }) => !args.shape || name.endsWith(args.shape))
) {
  const loading = clock();
  using model = await randomModel(device, shape);
  console.log(
    `${shape.name}: loaded in ${((clock() - loading) / 1e3).toFixed(1)} s; ${(stepBytes(shape) / 1e9).toFixed(2)} GB of weights a step`,
  );
  for (const length of lengths) {
    for (const slots of slotCounts) {
      for (const name of chosen) {
        const row = await measure(model, shape, name, length, slots, rate);
        results.push(row);
        const ops = productOps(shape, length) + attentionOps(shape, length);
        console.log(
          `${name.padEnd(7)} ${length} x ${slots}: prefill ${row.prefillMs.toFixed(0)} ms (${
            (ops / row.prefillMs / 1e9).toFixed(0)
          } TFLOP/s), step ${row.stepMs.toFixed(3)} ms, floor ${row.floorMs.toFixed(3)} ms (${(row.bytes / 1e9).toFixed(2)} GB), ${
            ((100 * row.floorMs) / row.stepMs).toFixed(0)
          } %`,
        );
      }
    }
  }
}
if (args.json) {
  writeFileSync(
    args.json,
    JSON.stringify(
      { device: device.description, copy: rate, results },
      null,
      2,
    ),
  );
}
process.exit(0);
