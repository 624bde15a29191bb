/**
 * Writes tiny/llamacpp.json: what llama.cpp makes of the tiny GGUF files, in every format of weights, with KV rows in F32.
 *
 *     bun tests/golden/tiny/make.ts all FOLDER && bun tests/golden/make_tiny_llamacpp.ts ENGINE_FOLDER FOLDER
 *
 * Each model reads the text of tiny/teacher.json in one go (batches of 512, so the last tokens are a second batch).
 */
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { base64Of, jsonOf, judge, openLlamaCpp } from "./llamacpp.ts";
import { ggufCases } from "./tiny/shapes.ts";

const [engineFolder, folder] = process.argv.slice(2);
if (!folder) throw new TypeError("Cannot start: wanted ENGINE_FOLDER FOLDER");
const at = (name: string) => new URL(`tiny/${name}`, import.meta.url);
const { tokens, positions } = JSON.parse(readFileSync(at("teacher.json"), "utf8")) as { tokens: number[]; positions: number[] };
const engine = await openLlamaCpp(engineFolder);
const cases = [];
for (const { name } of ggufCases) {
  const file = join(folder, "gguf", `${name}.gguf`);
  const rows = await engine.read(file, tokens.length + 8, (reader) => reader.feed(tokens, tokens.map((_, i) => i)));
  const found = rows.map(judge);
  cases.push({
    name,
    sha256: createHash("sha256").update(readFileSync(file)).digest("hex"),
    logprob: tokens.slice(1).map((token, i) => Number(found[i].logprob(token).toFixed(5))),
    best: found.map(({ best }) => best),
    gap: found.map(({ gap }) => Number(gap.toFixed(4))),
    logits: positions.map((position) => ({ position, f32: base64Of(rows[position]) })),
  });
  console.log(name, "mean log-probability", (cases.at(-1)!.logprob.reduce((a, b) => a + b) / (tokens.length - 1)).toFixed(4));
}
const head = { engine: "llama.cpp", version: engine.version, kvDtype: "float32" };
writeFileSync(at("llamacpp.json"), jsonOf(head, "cases", cases));
await engine.close();
