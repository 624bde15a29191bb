/**
 * llama.cpp, asked for logits: what the makers of golden files share. Uses node-llama-cpp 3.22.1, which is installed in a
 * folder outside this repository (`npm install node-llama-cpp@3.22.1`, 725 MB) and named on the command line.
 */
import { Buffer } from "node:buffer";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

interface Engine {
  readonly llamaCppRelease?: { readonly release: string };
  loadModel(options: Record<string, unknown>): Promise<Model>;
  dispose(): Promise<void>;
}
interface Model {
  createContext(options: Record<string, unknown>): Promise<Context>;
  dispose(): Promise<void>;
}
interface Context {
  getSequence(): Sequence;
  dispose(): Promise<void>;
}
interface Sequence {
  controlledEvaluate(items: unknown[]): Promise<({ next: { logits?: Map<number, number> } } | undefined)[]>;
}

/** One text as llama.cpp sees it. `logits[i]` are the logits after token i, where they were asked for. */
export interface Reader {
  /** Feeds tokens; returns f32[vocab] for each index in `wanted` (by default the last one only). */
  feed(tokens: number[], wanted?: number[]): Promise<Float32Array[]>;
}

export interface Opened {
  version: string;
  /** Loads a GGUF file, hands a reader of one fresh text to `use`, and lets the file go. */
  read<T>(file: string, capacity: number, use: (reader: Reader) => Promise<T>): Promise<T>;
  close(): Promise<void>;
}

/** Opens llama.cpp on the CPU. KV rows are f32, flash attention is off: the plainest path it has. */
export async function openLlamaCpp(folder: string): Promise<Opened> {
  const entry = pathToFileURL(resolve(folder, "node_modules/node-llama-cpp/dist/index.js")).href;
  const { getLlama, LlamaLogLevel } = await import(entry);
  const llama: Engine = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: 2 });
  return {
    version: `node-llama-cpp 3.22.1 (llama.cpp ${llama.llamaCppRelease?.release})`,
    async read(file, capacity, use) {
      const model = await llama.loadModel({ modelPath: file });
      const context = await model.createContext({
        contextSize: capacity,
        batchSize: 512,
        threads: { min: 2, ideal: 2 },
        flashAttention: false,
        ignoreMemorySafetyChecks: true,
        experimentalKvCacheKeyType: "F32",
        experimentalKvCacheValueType: "F32",
      });
      const sequence = context.getSequence();
      try {
        return await use({
          async feed(tokens, wanted = [tokens.length - 1]) {
            const asked = new Set(wanted);
            const items = tokens.map((t, i) => asked.has(i) ? [t, { generateNext: { logits: true, options: { temperature: 0 } } }] : t);
            const output = await sequence.controlledEvaluate(items);
            return wanted.map((i) => {
              const map = output[i]?.next.logits;
              if (!map) throw new Error(`Cannot read logits: none came back for token ${i}`);
              const row = new Float32Array(map.size);
              for (const [id, value] of map) row[id] = value;
              return row;
            });
          },
        });
      } finally {
        await context.dispose();
        await model.dispose();
      }
    },
    close: () => llama.dispose(),
  };
}

/** The best id of a row (the lower one of a tie), how far the second lies behind in nats, and the log-probability of an id. */
export function judge(row: Float32Array): { best: number; gap: number; logprob(id: number): number } {
  let best = 0, second = -Infinity, sum = 0;
  for (let i = 1; i < row.length; i++) if (row[i] > row[best]) best = i;
  for (let i = 0; i < row.length; i++) {
    if (i !== best) second = Math.max(second, row[i]);
    sum += Math.exp(row[i] - row[best]);
  }
  const total = row[best] + Math.log(sum);
  return { best, gap: row[best] - second, logprob: (id) => row[id] - total };
}

export const rounded = (value: number): number => Number(value.toFixed(6));
export const base64Of = (row: Float32Array): string => Buffer.from(row.buffer, row.byteOffset, row.byteLength).toString("base64");

/** JSON with one key of an item a line, as golden.py writes it. */
export function jsonOf(head: Record<string, unknown>, name: string, items: Record<string, unknown>[]): string {
  const lines = Object.entries(head).map(([key, value]) => `  ${JSON.stringify(key)}: ${JSON.stringify(value)},\n`);
  const blocks = items.map((item) => {
    const rows = Object.entries(item).map(([key, value]) => `      ${JSON.stringify(key)}: ${JSON.stringify(value)}`);
    return `    {\n${rows.join(",\n")}\n    }`;
  });
  return `{\n${lines.join("")}  ${JSON.stringify(name)}: [\n${blocks.join(",\n")}\n  ]\n}\n`;
}
