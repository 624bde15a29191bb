/**
 * Writes nano/llamacpp-f32.json: what llama.cpp makes of the nano model in F32, with KV rows in F32 (README.md has the format).
 *
 *     bun tests/golden/make_llamacpp.ts ENGINE_FOLDER MODEL.gguf
 *
 * MODEL.gguf holds the weights of models/nano widened to F32: `bun tests/golden/tiny/make.ts nano MODEL.gguf` writes it.
 */
import { readFileSync, writeFileSync } from "node:fs";
import process from "node:process";
import { base64Of, jsonOf, judge, openLlamaCpp, rounded } from "./llamacpp.ts";

interface Prompt {
  name: string;
  text: string;
  tokens: number[];
  positions?: number[];
}

const STEPS = 64;
const [folder, file] = process.argv.slice(2);
if (!file) throw new TypeError("Cannot start: wanted ENGINE_FOLDER MODEL.gguf");
const at = (name: string) => new URL(`nano/${name}`, import.meta.url);
const { prompts } = JSON.parse(readFileSync(at("prompts.json"), "utf8")) as { prompts: Prompt[] };
const engine = await openLlamaCpp(folder);
const results = [];
for (const { name, text, tokens, positions } of prompts) {
  const measured = await engine.read(file, tokens.length + STEPS + 8, async (reader) => {
    const greedy: number[] = [], logprob: number[] = [], gap: number[] = [], logits: { position: number; f32: string }[] = [];
    const early = (positions ?? []).filter((p) => p < tokens.length - 1);
    const rows = await reader.feed(tokens, [...early, tokens.length - 1]);
    early.forEach((position, i) => logits.push({ position, f32: base64Of(rows[i]) }));
    let row = rows[early.length];
    for (let step = 0, position = tokens.length - 1;; step++, position++) {
      if (positions?.includes(position)) logits.push({ position, f32: base64Of(row) });
      if (step === STEPS) break;
      const found = judge(row);
      greedy.push(found.best);
      logprob.push(rounded(found.logprob(found.best)));
      gap.push(rounded(found.gap));
      [row] = await reader.feed([found.best]);
    }
    return { greedy, logprob, gap, ...(positions ? { logits } : {}) };
  });
  console.log(name, "smallest gap", Math.min(...measured.gap));
  results.push({ name, text, tokens, ...measured });
}
const head = { engine: "llama.cpp", version: engine.version, model: "models/nano as GGUF", dtype: "float32", kvDtype: "float32" };
writeFileSync(at("llamacpp-f32.json"), jsonOf(head, "prompts", results));
await engine.close();
