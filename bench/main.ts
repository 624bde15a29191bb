/**
 * Benchmarks recallkv on a CPU, against this machine's limits and against llama.cpp on the same files in the same run.
 *   npm run bench -- --model FILE.gguf [--model …] [--json FILE] [--quick | --prefill LENGTHS --decode ROWS --ops]
 *     [--peer FOLDER] [--threads N] [--isa NAME] [--no-peer] [--beside N]
 * --quick: prefill of 512 and 4,096 tokens, decoding at 0 and 32,768, full and clusterKV at 1,024. --prefill, --decode, --ops (single ops):
 * these alone, as 512,32768. --peer: where node-llama-cpp is installed (bench/). --beside: N busy programs meanwhile. Both sides are first
 * shown to compute the same.
 */
import { execFileSync, spawn } from "node:child_process";
import { writeFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { basename } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { open } from "../lib/device.ts";
import { load, type LoadedModel } from "../lib/model.ts";
import { clusterKV } from "../lib/policies/cluster_kv.ts";
import { full } from "../lib/policies/full.ts";
import type { Policy } from "../lib/policies/policy.ts";
import { kvRowBytes, prefillFloor, stepFloor } from "./floors.ts";
import { type Limits, measureLimits, measureRead } from "./limits.ts";
import { manual } from "./manual.ts";
import { median, Tokens } from "./numbers.ts";
import { measureOps } from "./ops.ts";
import { decodeTimes, filled, likeliest, prefillTime, slotsRate } from "./ours.ts";
import { Peer } from "./peer_process.ts";
import { choosing, clocked } from "./shares.ts";

export interface Row {
  readonly what: "prefill" | "decode";
  readonly model: string;
  readonly weights: string;
  readonly context: number;
  readonly policy: "full" | "clusterKV";
  readonly budget: number;
  readonly exempt: readonly number[];
  /** Tokens per second. */
  readonly ours: number;
  readonly peer: number | null;
  readonly ratio: number | null;
  /** The least time the machine could take, as a share of ours. */
  readonly floorShare: number;
  /** Of decoding: GB/s that all threads read just before and after, their mean. */
  readonly bandwidth?: number;
}

manual(import.meta.url);
const here = fileURLToPath(new URL(".", import.meta.url));
const { values: options } = parseArgs({
  args: process.argv.slice(2),
  options: {
    model: { type: "string", multiple: true },
    json: { type: "string" },
    quick: { type: "boolean", default: false },
    prefill: { type: "string" },
    decode: { type: "string" },
    peer: { type: "string", default: here },
    "no-peer": { type: "boolean", default: false },
    beside: { type: "string", default: "0" },
    ops: { type: "boolean", default: false },
    threads: { type: "string", default: String(cpus().length) },
    isa: { type: "string" },
  },
});
if (!options.model) {
  throw new RangeError(
    "Cannot benchmark: no file given, want --model FILE.gguf (bench/README.md says how they are made)",
  );
}
const threads = Number(options.threads);
const quick = options.quick;
const deepest = 32768;
const isPart = options.prefill !== undefined || options.decode !== undefined || options.ops;
const [prefills, decodes] = isPart
  ? [options.prefill, options.decode].map((list = "") => list.split(",").filter(Boolean).map(Number))
  : quick
  ? [[512, 4096], [0, deepest]]
  : [[512, 4096, 16384, deepest], [0, 1024, 4096, 16384, deepest]];
for (const length of [...prefills, ...decodes]) {
  if (!(Number.isInteger(length) && length >= 0 && length <= deepest)) {
    throw new RangeError(`Cannot benchmark ${length} tokens: want whole numbers up to ${deepest}, as in --prefill 512,4096`);
  }
}

const beside = Number(options.beside);
if (!(Number.isInteger(beside) && beside >= 0)) {
  throw new RangeError(`Cannot benchmark beside ${options.beside} programs: want a whole number`);
}
for (let i = 0; i < beside; i++) { // busy for as long as this program is there, however it ends
  spawn("sh", ["-c", "while kill -0 $PPID 2>/dev/null; do :; done"], { stdio: "ignore" }).unref();
}

const say = (text: string) => console.log(text);
const digits = (value: number) => value.toPrecision(value < 100 ? 3 : 4);
const rows: Row[] = [];
const report: Record<string, unknown> = {
  machine: `${cpus()[0].model.trim()}, ${threads} threads`,
  date: new Date().toISOString(),
  commit: execFileSync("git", ["-C", here, "rev-parse", "--short", "HEAD"], {
    stdio: ["ignore", "pipe", "ignore"],
  }).toString().trim(),
  loadAtStart: loadavg()[0],
};
const limits = measureLimits(threads);
report.limits = limits;
say(`limits: ${JSON.stringify(limits)}; load ${loadavg()[0].toFixed(2)}`);

for (const path of options.model) await benchModel(path);
report.rows = rows;
report.loadAtEnd = loadavg()[0];
if (options.json) {
  writeFileSync(options.json, `${JSON.stringify(report, null, 1)}\n`);
}
process.exit(0);

async function benchModel(path: string): Promise<void> {
  const begin = performance.now();
  using device = await open("cpu", { threads, isa: options.isa });
  using model = await load(path, { device });
  const loaded = performance.now() - begin;
  const tokens = new Tokens(model.shape.vocab);
  say(
    `\n${basename(path)}: ${device.description}, loaded in ${loaded.toFixed(0)} ms, ${
      (process.resourceUsage().maxRSS * 1024 / 1e9).toFixed(2)
    } GB at most`,
  );
  const [peer, name] = options["no-peer"] ? [null, ""] : await Peer.start(options.peer, path, threads, deepest + 512);
  try {
    if (peer) await compare(model, peer, name, tokens);
    if (options.ops || (!quick && !isPart)) {
      const ops = await measureOps(model, limits, deepest);
      for (const { op, what, ms, rate, unit, share } of ops) {
        say(
          `${op} ${what}: ${digits(ms)} ms, ${digits(rate)} ${unit}, ${(100 * share).toFixed(0)} % of the limit`,
        );
      }
      report.ops = [
        ...(report.ops as unknown[] ?? []),
        ...ops.map((row) => ({ file: basename(path), ...row })),
      ];
    }
    if (!isPart) await benchSlots(model, path);
    for (const length of prefills) await benchPrefill(model, path, peer, length, tokens);
    for (const depth of decodes) await benchDecode(model, path, peer, depth, tokens);
  } finally {
    peer?.[Symbol.dispose]();
  }
}

async function benchSlots(model: LoadedModel, path: string): Promise<void> {
  const [one, four] = [
    await slotsRate(model, 1, 16),
    await slotsRate(model, 4, 16),
  ];
  say(
    `four slots: ${digits(four)} tok/s together, ${digits(one)} tok/s one alone, ${(four / one).toFixed(2)} times`,
  );
  report.fourSlots = [...(report.fourSlots as unknown[] ?? []), {
    file: basename(path),
    one,
    four,
  }];
}

/** Both sides give the same tokens the same probabilities, but for the rounding of activations, which both do their own way. */
async function compare(
  model: LoadedModel,
  peer: Peer,
  name: string,
  tokens: Tokens,
): Promise<void> {
  const text = tokens.take(96);
  const ours = await likeliest(model, text, 20);
  const theirs = await peer.ask<number[]>({
    do: "logprobs",
    tokens: text,
    of: ours.map(({ token }) => token),
  });
  const worst = Math.max(
    ...ours.map(({ logprob }, i) => Math.abs(logprob - theirs[i])),
  );
  say(
    `same text, ${name}: log-probabilities of our 20 likeliest tokens differ by at most ${worst.toFixed(3)}`,
  );
  report.sameWithin = worst;
  if (!(worst < 0.25)) {
    throw new Error(
      `Cannot benchmark: log-probabilities differ by ${worst}, want the same computation on both sides`,
    );
  }
}

function add(
  path: string,
  row: Omit<Row, "model" | "weights" | "ratio">,
): void {
  const [, shape, weights] = /(.*)-([^-]+)\.gguf$/.exec(basename(path)) ??
    [, basename(path), ""];
  const ratio = row.peer === null ? null : row.ours / row.peer;
  rows.push({ ...row, model: shape!, weights: weights!, ratio });
  const policy = row.policy === "full" ? "full" : `clusterKV ${row.budget}, exempt ${row.exempt.join(" ") || "none"}`;
  say(
    `${row.what} ${row.context} ${policy}: ${digits(row.ours)} tok/s, llama.cpp ${row.peer === null ? "-" : digits(row.peer)}, ` +
      `ratio ${ratio === null ? "-" : ratio.toFixed(2)}, ${(100 * row.floorShare).toFixed(0)} % of the limit${
        row.bandwidth ? ` (${digits(row.bandwidth)} GB/s)` : ""
      }; load ${loadavg()[0].toFixed(2)}`,
  );
}

async function benchPrefill(
  model: LoadedModel,
  path: string,
  peer: Peer | null,
  length: number,
  tokens: Tokens,
): Promise<void> {
  const [ours, theirs]: [number[], number[]] = [[], []];
  for (let round = 0; round < (length > 512 ? 1 : 3); round++) {
    const text = tokens.take(length);
    ours.push((await prefillTime(model, text)).ms);
    if (peer) {
      theirs.push(await peer.ask<number>({ do: "prefill", tokens: text }));
    }
  }
  const ms = median(ours);
  const rate = (time: number) => length / time * 1e3;
  const floorShare = prefillFloor(model, limits, length) / ms;
  add(path, {
    what: "prefill",
    context: length,
    policy: "full",
    budget: 0,
    exempt: [],
    ours: rate(ms),
    peer: peer && rate(median(theirs)),
    floorShare,
  });
  if (length < deepest) return;
  const clustered = await prefillTime(model, tokens.take(length), clusterKV({ budget: 1024, exempt: [] }));
  say(`the same with clusters: ${digits(rate(clustered.ms))} tok/s, of which clustering took ${(100 * clustered.clustering).toFixed(1)} %`);
  report.clustering = [...(report.clustering as unknown[] ?? []), { file: basename(path), context: length, share: clustered.clustering }];
}

interface Reading {
  readonly kv: Policy;
  readonly budget: number;
  readonly exempt: readonly number[];
}

function readings(depth: number): Reading[] {
  if (depth < 16384) return [{ kv: full(), budget: 0, exempt: [] }];
  const cluster = (budget: number, exempt: number[]) => ({
    kv: clusterKV({ budget, exempt }),
    budget,
    exempt,
  });
  const clusters = [cluster(1024, [0, 1]), cluster(1024, [])];
  return [
    { kv: full(), budget: 0, exempt: [] },
    ...clusters,
    ...(quick ? [] : [cluster(2048, [0, 1]), cluster(2048, [])]),
  ];
}

/** Rounds of our steps and of the peer's, in turn. */
async function benchDecode(
  model: LoadedModel,
  path: string,
  peer: Peer | null,
  depth: number,
  tokens: Tokens,
): Promise<void> {
  const [rounds, steps] = [3, depth > 8192 ? 8 : 12];
  if (peer && depth > 0) {
    await peer.ask({ do: "deepen", tokens: tokens.take(512), rows: depth });
  } else if (peer) await peer.ask({ do: "empty" });
  const theirs: number[] = [];
  for (const { kv, budget, exempt } of readings(depth)) {
    const { session, ms } = await filled(
      model,
      kv,
      depth,
      rounds * (steps + 2) + steps + 8,
      tokens,
    );
    using _ = session;
    if (depth > 0) {
      say(
        `(filled ${depth} rows for ${kv.name} in ${(ms / 1e3).toFixed(1)} s)`,
      );
    }
    await decodeTimes(session, 2);
    const before = await session.attended();
    const readBefore = measureRead(threads);
    const ours: number[] = [];
    for (let round = 0; round < rounds; round++) {
      ours.push(...await decodeTimes(session, steps));
      if (peer) {
        theirs.push(
          ...(await peer.ask<number[]>({ do: "decode", steps: steps + 1 }))
            .slice(1),
        );
      }
    }
    const bandwidth = (readBefore + measureRead(threads)) / 2;
    const after = await session.attended();
    const read = (["sink", "index", "tail", "estimates"] as const).reduce(
      (sum, source) => sum + after[source] - before[source],
      0,
    );
    const kvBytes = read / (after.steps - before.steps) / model.shape.kvHeads *
        kvRowBytes(model, session.kvDtype) + session.selectBytes();
    const time = median(ours);
    add(path, {
      what: "decode",
      context: depth,
      policy: kv.name === "full" ? "full" : "clusterKV",
      budget,
      exempt,
      ours: 1e3 / time,
      peer: peer && 1e3 / median(theirs),
      floorShare: stepFloor(model, bandwidth, kvBytes) / time,
      bandwidth,
    });
    if (kv.name === "full") continue;
    const { each, part, all } = await clocked(session, choosing, () => decodeTimes(session, steps));
    const ofLayer = (seconds: number) => 1e6 * seconds / (steps + 1) / (model.shape.layers - exempt.length);
    const ops = Object.entries(each).map(([op, seconds]) => `${op} ${ofLayer(seconds).toFixed(0)}`).join(", ");
    say(`choosing: ${ofLayer(part).toFixed(0)} us a layer (${ops}), ${(100 * part / all).toFixed(1)} % of a step`);
    report.select = [...(report.select as unknown[] ?? []), {
      file: basename(path),
      context: depth,
      budget,
      exempt,
      microseconds: ofLayer(part),
      share: part / all,
    }];
  }
}

export type { Limits };
