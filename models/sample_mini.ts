/**
 * Samples texts from models/mini with llama.cpp and prints each as a line of JSON, until the pipe closes: the first half of
 *
 *     bun models/sample_mini.ts ENGINE_FOLDER | python models/write_prose.py mini
 *
 * ENGINE_FOLDER is a folder outside this repository where `npm install node-llama-cpp@3.22.1` ran. A run has 800 tokens at most, from
 * <|bos|> and a short opening, and ends early where the model ends its text. One text at a time, so that seeds decide.
 */
import { resolve } from "node:path";
import process from "node:process";
import { fileURLToPath, pathToFileURL } from "node:url";

interface Model {
  tokenize(text: string, special?: boolean): number[];
  detokenize(tokens: number[]): string;
  createContext(options: Record<string, unknown>): Promise<{ getSequence(): Sequence }>;
}
interface Sequence {
  clearHistory(): Promise<void>;
  evaluate(tokens: number[], options: Record<string, unknown>): AsyncGenerator<number>;
}

const RUN = 800, SEED = 2413, TEMPERATURE = 0.9, TOP_P = 0.95, FIRST_CONTROL = 16_377;
const openings = [
  "The old house stood",
  "It was late in the evening when",
  "In the spring of that year",
  "My father had always",
  "The captain looked",
  "There was a time when",
  "When the rain had ceased",
  "She had been sitting",
  "Upon the hill",
  "The morning was",
  "At the end of the street",
  "He was a tall man",
  "We had not gone far",
  "The road went down",
  "Nothing in the world",
  "The river was",
  "After supper the company",
  "The young lady",
  "His uncle had been",
  "The garden was full",
  "I remember very well",
  "The ship had been",
  "By the time we reached",
  "The village lay",
  "Every one in the room",
  "The wind had fallen",
  "For some days after",
  "The doctor was",
  "As soon as the door",
  "The light of the fire",
  "Many years ago",
  "The people of the town",
];

const folder = process.argv[2];
if (!folder) throw new TypeError("Cannot start: wanted ENGINE_FOLDER");
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(resolve(folder, "node_modules/node-llama-cpp/dist/index.js")).href);
const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: 1 });
const model: Model = await llama.loadModel({ modelPath: fileURLToPath(new URL("mini/model-q8_0.gguf", import.meta.url)) });
const context = await model.createContext({
  contextSize: RUN + 32,
  threads: { min: 1, ideal: 1 },
  flashAttention: false,
  ignoreMemorySafetyChecks: true,
});
const sequence = context.getSequence();
process.stdout.on("error", () => process.exit(0));
for (let run = 0;; run++) {
  const text = [...model.tokenize(openings[run % openings.length])],
    options = { temperature: TEMPERATURE, topP: TOP_P, topK: 0, minP: 0, seed: SEED + run };
  await sequence.clearHistory();
  let drawn = 0;
  for await (const token of sequence.evaluate([FIRST_CONTROL, ...text], options)) {
    if (token >= FIRST_CONTROL || ++drawn > RUN) break;
    text.push(token);
  }
  process.stdout.write(JSON.stringify(model.detokenize(text)) + "\n");
}
