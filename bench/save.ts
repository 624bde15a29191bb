/**
 * Times saving and restoring a session: every byte is checked on the way back.
 *   bun run bench/save.ts --model FILE.gguf [--tokens 32768] [--rounds 5] [--kv full|clusterKV] [--file PATH]
 * Rows are filled as for the benchmarks of decoding (ours.ts). The file stays in the system's cache between saving and restoring; restoring
 * is timed from the path to a session that would decode, with the model loaded.
 */
import { rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { load } from "../lib/model.ts";
import { clusterKV } from "../lib/policies/cluster_kv.ts";
import { full } from "../lib/policies/full.ts";
import { manual } from "./manual.ts";
import { median, Tokens } from "./numbers.ts";
import { filled } from "./ours.ts";

manual(import.meta.url);
const { values: options } = parseArgs({
  options: {
    model: { type: "string" },
    tokens: { type: "string", default: "32768" },
    rounds: { type: "string", default: "5" },
    kv: { type: "string", default: "full" },
    file: { type: "string", default: join(tmpdir(), `bench-${process.pid}.recall`) },
  },
});
if (!options.model) throw new RangeError("Cannot benchmark: no file given, want --model FILE.gguf");

const kv = () => options.kv === "clusterKV" ? clusterKV() : full();
using model = await load(options.model, { device: "cpu" });
const { session: made } = await filled(model, kv(), Number(options.tokens), 64, new Tokens(model.shape.vocab));
using session = made;
const path = options.file;
try {
  const times: { save: number[]; restore: number[] } = { save: [], restore: [] };
  for (let round = 0; round < 2; round++) {
    const began = performance.now();
    await session.save(path);
    times.save.push(performance.now() - began);
  }
  for (let round = 0; round < Number(options.rounds); round++) {
    const began = performance.now();
    using back = await model.restore(path, { kv: kv(), onWarning: () => {} });
    times.restore.push(performance.now() - began);
    if (back.length() !== Number(options.tokens)) throw new Error(`${back.length()} tokens came back, want ${options.tokens}`);
  }
  const line = (what: "save" | "restore") =>
    `${what} ${Math.round(median(times[what]))} ms (${times[what].map((ms) => Math.round(ms)).join(", ")})`;
  console.log(`${options.tokens} tokens, ${(statSync(path).size / 2 ** 20).toFixed(0)} MiB, ${model.device.description}`);
  console.log(`${line("save")}; ${line("restore")}, checked`);
} finally {
  rmSync(path, { force: true });
}
