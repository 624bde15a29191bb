/**
 * llama.cpp, through node-llama-cpp, in a process of its own: reads one command a line, answers each with a line of JSON.
 *   bun peer.ts FOLDER MODEL THREADS CONTEXT      FOLDER: where node-llama-cpp is installed
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { lengthen } from "./peer_state.ts";

export type Command =
  | { do: "logprobs"; tokens: number[]; of: number[] }
  | { do: "prefill"; tokens: number[] }
  | { do: "empty" }
  | { do: "deepen"; tokens: number[]; rows: number }
  | { do: "decode"; steps: number };

const [folder, modelPath, threadCount, contextSize] = process.argv.slice(2);
const threads = Number(threadCount);
const library = join(folder, "node_modules/node-llama-cpp/dist/index.js");
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(library).href);
const llama = await getLlama({
  gpu: false,
  build: "never",
  logLevel: LlamaLogLevel.error,
  maxThreads: threads,
});
const model = await llama.loadModel({ modelPath });
const context = await model.createContext({
  contextSize: Number(contextSize),
  batchSize: 512,
  threads: { min: threads, ideal: threads },
  flashAttention: true,
  ignoreMemorySafetyChecks: true,
});
const sequence = context.getSequence();
let last = 1000;

/** Log-probabilities that the model gives to tokens after a text. */
async function logprobs(tokens: number[], of: number[]): Promise<number[]> {
  const end = [tokens.at(-1), {
    generateNext: { logits: true, options: { temperature: 0 } },
  }];
  const logits: Map<number, number> = (await sequence.controlledEvaluate([...tokens.slice(0, -1), end])).at(-1)
    .next.logits;
  let sum = 0;
  for (const logit of logits.values()) sum += Math.exp(logit);
  return of.map((token) => logits.get(token)! - Math.log(sum));
}

/** Brings the sequence to a depth by lengthening the state that a short text leaves: what the rows hold does not change the speed. */
async function deepen(tokens: number[], rows: number): Promise<void> {
  const temporary = mkdtempSync(join(tmpdir(), "recallkv-peer-"));
  try {
    const [short, long] = [join(temporary, "short"), join(temporary, "long")];
    await sequence.evaluateWithoutGeneratingNewTokens(tokens);
    await sequence.saveStateToFile(short);
    await sequence.clearHistory();
    lengthen(short, long, rows);
    await sequence.loadStateFromFile(long, { acceptRisk: true });
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
}

/** Milliseconds of each step. */
async function decode(steps: number): Promise<number[]> {
  const times: number[] = [];
  let before = performance.now();
  for await (
    const token of sequence.evaluate([last], {
      temperature: 0,
      yieldEogToken: true,
    })
  ) {
    const now = performance.now();
    times.push(now - before);
    before = now;
    last = token;
    if (times.length >= steps) break;
  }
  return times;
}

async function answer(command: Command): Promise<unknown> {
  if (command.do === "decode") return await decode(command.steps);
  await sequence.clearHistory();
  if (command.do === "logprobs") {
    return await logprobs(command.tokens, command.of);
  }
  if (command.do === "deepen") {
    return await deepen(command.tokens, command.rows);
  }
  if (command.do === "empty") return;
  const begin = performance.now();
  await sequence.evaluateWithoutGeneratingNewTokens(command.tokens);
  return performance.now() - begin;
}

console.log(
  JSON.stringify({ answer: `llama.cpp ${llama.llamaCppRelease?.release}` }),
);
for await (const line of createInterface({ input: process.stdin })) {
  console.log(
    JSON.stringify({ answer: (await answer(JSON.parse(line))) ?? null }),
  );
}
process.exit(0);
