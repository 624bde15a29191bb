/**
 * A GGUF file of a real shape, read by llama.cpp and by recallkv: the largest difference of a logit and the KL, by hand.
 *
 *     bun tests/golden/compare_shape.ts ENGINE_FOLDER FILE.gguf ...
 *
 * Both read the 544 tokens of tiny/teacher.json (batches of 512), with KV rows in F32. What was found stands in README.md.
 */
import { readFileSync } from "node:fs";
import { basename } from "node:path";
import process from "node:process";
import { load } from "../../mod.ts";
import { divergence, largestDifference } from "../support/run.ts";
import { openLlamaCpp } from "./llamacpp.ts";

const [engineFolder, ...paths] = process.argv.slice(2);
if (paths.length === 0) throw new TypeError("Cannot start: wanted ENGINE_FOLDER FILE.gguf ...");
const teacher = JSON.parse(readFileSync(new URL("tiny/teacher.json", import.meta.url), "utf8"));
const { tokens, positions } = teacher as { tokens: number[]; positions: number[] };
const engine = await openLlamaCpp(engineFolder);
console.log(engine.version);
for (const path of paths) {
  const theirs = await engine.read(path, tokens.length + 8, (reader) => reader.feed(tokens, positions));
  using model = await load(path, { device: "cpu" });
  using session = model.session({ kvDtype: "f32", capacity: 600 });
  let begin = 0;
  for (const [i, position] of positions.entries()) {
    await session.prefill(tokens.slice(begin, position + 1));
    begin = position + 1;
    const ours = await session.logits();
    const mean = theirs[i].reduce((sum, x) => sum + x, 0) / theirs[i].length;
    const deviation = Math.sqrt(theirs[i].reduce((sum, x) => sum + (x - mean) ** 2, 0) / theirs[i].length);
    const [off, kl] = [largestDifference(theirs[i], ours), divergence(theirs[i], ours)];
    console.log(`| ${basename(path)} | ${position} | ${off.toExponential(1)} | ${deviation.toFixed(2)} | ${kl.toExponential(1)} |`);
  }
}
await engine.close();
