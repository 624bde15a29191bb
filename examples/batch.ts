// Several prompts at once share every pass over the weights; a slot that has finished takes the next one.
// bun run examples/batch.ts   |   deno run -A examples/batch.ts
import { generate, load } from "recallkv";

const prompts = ["Once the storm had passed,", "The old man walked down to the harbour", "In the morning the road", "Nobody at the mill"];
using model = await load();

const batch = generate(prompts, { model, slots: 2, maxTokens: 24, temperature: 0.8, seed: 3, stop: "." });
for await (const { index, text } of batch) if (text.includes(" the")) console.log(`prompt ${index} speaks of "${text.trim()} …"`);
for (const [i, { text, finishReason }] of (await batch).entries()) console.log(`${prompts[i]}${text}  (${finishReason})`);

// The same seed gives the same text alone.
const [alone, [first]] = [
  await generate(prompts[1], { model, maxTokens: 24, temperature: 0.8, seed: 3, stop: "." }),
  (await batch).slice(1),
];
console.log(alone.text === first.text ? "alone: the same" : "alone: something else");
