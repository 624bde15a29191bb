// Continues a text with the model that ships with recallkv.   bun run examples/generate.ts   |   deno run -A examples/generate.ts
import process from "node:process";
import { generate } from "recallkv";

const prompt = process.argv[2] ?? "Once the storm had passed,";
const generation = generate(prompt, { maxTokens: 60 });
process.stdout.write(prompt);
for await (const piece of generation) process.stdout.write(piece);

const { finishReason, stats } = await generation;
console.log(`\n(${finishReason}; ${stats.generatedTokens} tokens, ${stats.tokensPerSecond.toFixed(0)} a second)`);
