/** Readers of the golden files beside this one; tests/golden/README.md says what they hold. */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

const [kvHeads, group, headDim, topicRows] = [2, 2, 32, 25];

export interface Inputs {
  readonly length: number;
  readonly kvHeads: number;
  readonly heads: number;
  readonly headDim: number;
  /** f32[length, heads, headDim]: as attention uses them, with scale 1 / sqrt(headDim). */
  readonly q: Float32Array;
  /** f32[kvHeads, length, headDim]; 8 significant bits. */
  readonly keys: Float32Array;
  readonly values: Float32Array;
}

export interface Golden<Options> {
  readonly name: string;
  /** Whose code answered. */
  readonly oracle: string;
  readonly inputs: Inputs;
  readonly options: Options;
  /** Least score that was kept less the largest that was not. */
  readonly gap: number;
}

export interface SnapKVGolden extends Golden<{ budget: number; window: number; kernel: number; pooling: "mean" | "max"; perHead: boolean }> {
  /** Rows kept of each KV head, or of each query head, ascending. */
  readonly kept: readonly (readonly number[])[];
  /** f32[heads, length - window]. */
  readonly scores: Float32Array;
}

export const snapKVGoldens = (): SnapKVGolden[] => read<SnapKVGolden>("snapKV");

export interface QuestGolden extends Golden<{ page: number; budget: number }> {
  /** How many rows there are; the query is that of the last. */
  readonly rows: number;
  /** Rows that each query head read, ascending: max(3, budget / page) pages, the open one ranked with the others. */
  readonly kept: readonly (readonly number[])[];
  /** f32[heads, pages], not scaled. */
  readonly scores: Float32Array;
  /** f32[kvHeads, pages, 2, headDim]: least and largest of each channel. */
  readonly bounds: Float32Array;
}

export const questGoldens = (): QuestGolden[] => read<QuestGolden>("quest");

export interface H2OGolden extends Golden<{ heavy: number; recent: number; perHead: boolean }> {
  /** Rows of the prompt; each later row comes with a step of its own. */
  readonly prompt: number;
  /** Rows held after the prompt, ascending. */
  readonly kept: readonly (readonly number[])[];
  /** f32[heads, prompt]: the sums after the prompt, nothing dropped yet. */
  readonly scores: Float32Array;
  /** [steps][heads]: the row that went after each step. */
  readonly dropped: readonly (readonly number[])[];
  /** Second least less least sum of those that could go, the narrowest of all steps. */
  readonly stepGap: number;
  readonly finalKept: readonly (readonly number[])[];
  /** f32[heads, heavy + recent], in the order of finalKept. */
  readonly finalScores: Float32Array;
}

export const h2oGoldens = (): H2OGolden[] => read<H2OGolden>("h2o");

export interface H2ORatesGolden extends Golden<{ budget: number }> {
  readonly kept: readonly (readonly number[])[];
  /** f32[kvHeads, length]: sums divided by the number of queries that could see the row, mean over the group. */
  readonly scores: Float32Array;
}

export const h2oRatesGoldens = (): H2ORatesGolden[] => read<H2ORatesGolden>("h2oRates");

export interface ChunkKVGolden extends Golden<{ budget: number; window: number; chunk: number; kernel: number }> {
  /** Whether a chunk ends where the window begins. */
  readonly aligned: boolean;
  /** Rows kept of every KV head, ascending. */
  readonly kept: readonly number[];
  /** f32[chunks]: of those that lie before the window. */
  readonly scores: Float32Array;
}

export const chunkKVGoldens = (): ChunkKVGolden[] => read<ChunkKVGolden>("chunkKV");

export interface PyramidInferOptions {
  recent: number;
  newest: number;
  sinks: number;
  ratio: number;
  least: number;
  every: number;
  generatedRatio: number;
}

export interface PyramidInferGolden extends Golden<PyramidInferOptions> {
  readonly prompt: number;
  readonly steps: number;
  readonly layers: number;
  /** Rows of the prompt that reach each layer, ascending. */
  readonly entered: readonly (readonly number[])[];
  /** Of each layer that ranks: the score of each row of its context, the first rows of those that entered. */
  readonly scores: readonly { readonly layer: number; readonly f32: Float32Array }[];
  /** Rows of each layer's cache after all steps, ascending. */
  readonly held: readonly (readonly number[])[];
}

export const pyramidInferGoldens = (): PyramidInferGolden[] =>
  read<PyramidInferGolden>("pyramidInfer").map((one) => {
    const packed = one.scores as unknown as readonly (Packed & { layer: number })[];
    return { ...one, scores: packed.map((scores) => ({ layer: scores.layer, f32: unpacked(scores) as Float32Array })) };
  });

export interface InfiniGenGolden extends Golden<{ partial: number; alpha: number; budget: number }> {
  /** Rows of the prompt; the guessed query is that of the row after them. */
  readonly prompt: number;
  /** f32[kvHeads, headDim, headDim]: directions in columns, to 11 bits. */
  readonly skew: Float32Array;
  /** Columns that stand for all, of each KV head, the weightiest first. */
  readonly channels: readonly (readonly number[])[];
  /** How far the last of them lies before the next, as a share of the first. */
  readonly skewGap: number;
  /** f32[heads, prompt]: logits in these channels. */
  readonly scores: Float32Array;
  /** Rows of each query head within alpha of its best. */
  readonly counts: readonly number[];
  /** Distance of the nearest logit to that bound. */
  readonly countGap: number;
  /** Rows read of each query head, best first: min(floor(mean of counts), budget). */
  readonly chosen: readonly (readonly number[])[];
}

export const infiniGenGoldens = (): InfiniGenGolden[] => read<InfiniGenGolden>("infiniGen");

export interface ClusterKVGolden extends Golden<{ budget: number; sink: number }> {
  /** Rows of the prompt; the query is that of the row after them. */
  readonly prompt: number;
  readonly clusters: number;
  /** f32[kvHeads, clusters, headDim]: given to the code, raw means of some k-means. */
  readonly centroids: Float32Array;
  /** Rows of each KV head by cluster, ascending within one. */
  readonly order: readonly (readonly number[])[];
  readonly sizes: readonly (readonly number[])[];
  /** Least distance of a row's best cosine from its second. */
  readonly labelGap: number;
  /** f32[heads, clusters]: query . centroid. */
  readonly scores: Float32Array;
  /** budget - sink rows of each query head, best cluster first. */
  readonly kept: readonly (readonly number[])[];
}

export const clusterKVGoldens = (): ClusterKVGolden[] => read<ClusterKVGolden>("clusterKV");

/** A case as it lies in the file: the inputs are said by their seed, tensors are packed. */
function read<Case extends { inputs: Inputs }>(method: string): Case[] {
  const { cases } = JSON.parse(readFileSync(new URL(`${method}.json`, import.meta.url), "utf8")) as { cases: Record<string, unknown>[] };
  return cases.map((one) => {
    const { seed, length, sharp, sha256 } = one.inputs as { seed: number; length: number; sharp: number; sha256: string };
    const fields = Object.entries(one).map(([name, value]) => [name, isPacked(value) ? unpacked(value) : value]);
    return { ...Object.fromEntries(fields), inputs: inputsOf(seed, length, sharp, sha256) } as Case;
  });
}

interface Packed {
  readonly dtype: "f32" | "i32";
  readonly data: string;
}

function isPacked(value: unknown): value is Packed {
  return typeof value === "object" && value !== null && "dtype" in value && "data" in value;
}

function unpacked({ dtype, data }: Packed): Float32Array | Int32Array {
  const { buffer } = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  return dtype === "f32" ? new Float32Array(buffer) : new Int32Array(buffer);
}

/** The inputs of a seed, as inputs.py makes them; Error where they are not those that the file was made of. */
export function inputsOf(seed: number, length: number, sharp = 1, sha256?: string): Inputs {
  const heads = kvHeads * group;
  const topics = bells(seed * 8, kvHeads * (Math.floor(length / topicRows) + 1) * headDim);
  const topic = (h: number, n: number, d: number) => topics[(h * (Math.floor(length / topicRows) + 1) + n) * headDim + d];
  const ownTopic = (row: number) => Math.floor(row / topicRows);
  const place = (i: number) => ({ h: Math.floor(i / headDim / length), row: Math.floor(i / headDim) % length, d: i % headDim });
  const keys = Float32Array.from(bells(seed * 8 + 1, kvHeads * length * headDim), (x, i) => {
    const { h, row, d } = place(i);
    return ((x + topic(h, ownTopic(row), d)) >> 3) / 32;
  });
  const values = Float32Array.from(bells(seed * 8 + 2, kvHeads * length * headDim), (x) => (x >> 2) / 32);
  const asked = hashed(seed * 8 + 3, length).map((x, row) => x % (ownTopic(row) + 1));
  const q = Float32Array.from(bells(seed * 8 + 4, length * heads * headDim), (x, i) => {
    const [row, head, d] = [Math.floor(i / headDim / heads), Math.floor(i / headDim) % heads, i % headDim];
    return (x + topic(Math.floor(head / group), asked[row], d)) * sharp / 256;
  });
  if (sha256 !== undefined && sha256Of([q, keys, values]) !== sha256) {
    throw new Error(`Cannot make the inputs of seed ${seed}, length ${length}: their hash is not ${sha256}`);
  }
  return { length, kvHeads, heads, headDim, q, keys, values };
}

/** The 32-bit finisher of MurmurHash3 over seed * 2^20 + place, multiplied by the golden ratio. */
function hashed(seed: number, count: number): Uint32Array {
  return Uint32Array.from({ length: count }, (_, i) => {
    let x = Math.imul(i + seed * 2 ** 20, 0x9e3779b9);
    x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
    x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
    return x ^ (x >>> 16);
  });
}

/** Sums of four bytes of a hash, less their mean. */
function bells(seed: number, count: number): Int32Array {
  return Int32Array.from(hashed(seed, count), (x) => (x >>> 24) + ((x >>> 16) & 255) + ((x >>> 8) & 255) + (x & 255) - 510);
}

function sha256Of(parts: readonly Float32Array[]): string {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(new Uint8Array(part.buffer));
  return hash.digest("hex");
}
