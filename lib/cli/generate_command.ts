import { readFile } from "node:fs/promises";
import process from "node:process";
import { text as readAll } from "node:stream/consumers";
import { generate } from "../generate.ts";
import { load } from "../model.ts";
import { policies } from "../policies/mod.ts";
import type { Policy } from "../policies/policy.ts";
import { showProgress } from "./progress.ts";
import { oneOf, options, Usage, whole } from "./usage.ts";

/** `recallkv generate PROMPT [options]` */
export async function runGenerate(args: readonly string[]): Promise<void> {
  const { values, switches, rest } = options(args, {
    string: ["model", "device", "threads", "kv", "budget", "kv-dtype", "max-tokens", "file"],
    boolean: ["json"],
  });
  const prompt = await readPrompt(rest, values.file);
  const kvDtype = oneOf("kv-dtype", values["kv-dtype"], ["f32", "f16", "bf16", "q8"]);
  const device = oneOf("device", values.device, ["auto", "cpu", "cuda"]);
  const maxTokens = whole("max-tokens", values["max-tokens"], 1);
  const kv = policy(values.kv, values.budget);
  const stop = new AbortController();
  const interrupt = () => stop.abort();
  process.once("SIGINT", interrupt); // the second one ends the program
  const progress = showProgress(process.stderr.isTTY === true);
  try {
    using model = await load(values.model, {
      device,
      threads: whole("threads", values.threads, 1),
      signal: stop.signal,
      onProgress: progress,
    });
    const generation = generate(prompt, { model, kv, kvDtype, maxTokens, signal: stop.signal, onProgress: progress });
    if (!switches.json) {
      for await (const piece of generation) process.stdout.write(piece);
      process.stdout.write("\n");
    }
    const result = await generation;
    if (switches.json) process.stdout.write(`${JSON.stringify(result)}\n`);
  } finally {
    progress.end();
    process.off("SIGINT", interrupt);
  }
}

async function readPrompt(rest: readonly string[], file: string | undefined): Promise<string> {
  if (rest.length > 1) throw new Usage(`generate takes one prompt, found ${rest.length} (put it in quotes)`);
  if (rest.length === 1 && file !== undefined) throw new Usage("generate takes a prompt or --file, found both");
  if (rest.length === 1) return rest[0];
  if (file === undefined && process.stdin.isTTY) throw new Usage("generate wants a prompt, --file PATH, or text on standard input");
  return file === undefined || file === "-" ? await readAll(process.stdin) : await readFile(file, "utf8");
}

function policy(name: string | undefined, budget: string | undefined): Policy {
  const kv = oneOf("kv", name, Object.keys(policies) as (keyof typeof policies)[]) ?? "full";
  const rows = budget !== undefined && /^\d+$/.test(budget) ? Number(budget) : budget;
  if (rows === undefined) return policies[kv]();
  if (kv === "full" || kv === "pyramidInfer") throw new Usage(`--budget means nothing with --kv ${kv}, want another policy`);
  if (kv !== "slidingWindow") return policies[kv]({ budget: rows });
  if (typeof rows !== "number") throw new Usage(`--budget is "${rows}", want a whole number of rows with --kv slidingWindow`);
  return policies.slidingWindow({ window: rows });
}
