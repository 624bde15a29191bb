/** Models of known shapes with random weights, for timing: no download. All layers read the same part of one temporary file. */
import { mkdtempSync, openSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Arena, Device } from "../lib/device.ts";
import type { TensorSpan } from "../lib/formats/checkpoint.ts";
import { LoadedModel } from "../lib/model.ts";
import type { LayerWeights, LoadedCheckpoint, ModelShape } from "../lib/models/model.ts";
import type { Tokenizer } from "../lib/tokenizer/tokenizer.ts";
import { loadWeights, weightBytes } from "../lib/weights.ts";
import { median } from "./numbers.ts";

export interface Shape {
  readonly name: string;
  readonly layers: number;
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly intermediate: number;
  readonly vocab: number;
  readonly tied: boolean;
}

export const shapes: readonly Shape[] = [
  {
    name: "Llama-3.1-8B",
    layers: 32,
    hidden: 4096,
    heads: 32,
    kvHeads: 8,
    headDim: 128,
    intermediate: 14336,
    vocab: 128256,
    tied: false,
  },
  {
    name: "Llama-3.2-1B",
    layers: 16,
    hidden: 2048,
    heads: 32,
    kvHeads: 8,
    headDim: 64,
    intermediate: 8192,
    vocab: 128256,
    tied: true,
  },
];

/** Bytes of weights that a step reads: all but the input table, of which it reads a row. */
export function stepBytes(shape: Shape): number {
  const { layers, hidden, heads, kvHeads, headDim, intermediate, vocab } = shape;
  return 2 *
    (layers * hidden *
        (headDim * (2 * heads + 2 * kvHeads) + 3 * intermediate) +
      vocab * hidden);
}

/** Multiplications and additions of a prompt's products; its attention, causal, is `attentionOps`. */
export function productOps(shape: Shape, tokens: number): number {
  const { layers, hidden, heads, kvHeads, headDim, intermediate } = shape;
  return 2 * tokens * layers * hidden *
    (headDim * (2 * heads + 2 * kvHeads) + 3 * intermediate);
}

export function attentionOps(
  { layers, heads, headDim }: Shape,
  tokens: number,
): number {
  return 2 * tokens * tokens * layers * heads * headDim;
}

const repeats = 8;

/** The median of some runs, in seconds; each runs `times` times. */
async function timed(arena: Arena, times: number, run: () => void): Promise<number> {
  const seconds: number[] = [];
  for (let i = 0; i < repeats; i++) {
    await arena.fence();
    const begun = performance.now();
    for (let j = 0; j < times; j++) run();
    await arena.fence();
    seconds.push((performance.now() - begun) / 1e3 / times);
  }
  return median(seconds);
}

/** Bytes per second of a copy between two parts of memory, read and written. */
export async function copyRate(device: Device): Promise<number> {
  using arena = device.arena(10 * 2 ** 30);
  const rows = 1 << 20;
  const [from, to] = [arena.tensor("f32", [rows, 1024]), arena.tensor("f32", [rows, 1024])];
  from.commit(rows);
  to.commit(rows);
  return (2 * rows * 4096) / await timed(arena, 4, () => device.kernels.copy(to, 0, from, 0, rows));
}

/** Numbers from -1 to 1, from one seed. */
function uniform(count: number): Float32Array {
  let state = 0x9e3779b9;
  return Float32Array.from({ length: count }, () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 31 - 1;
  });
}

/** Operations per second of a layer's products behind attention, with the norm and the sums between them, over a chunk of 4,096 rows. */
export async function productRate(device: Device, model: LoadedModel, shape: Shape): Promise<number> {
  const { hidden, heads, headDim, intermediate } = shape;
  const count = 4096;
  using arena = device.arena(2 ** 32);
  const [x, attended] = [arena.tensor("f32", [count, hidden]), arena.tensor("f32", [count, heads, headDim])];
  const work = arena.tensor("f32", [count * (hidden + 2 * intermediate)]);
  x.commit(count);
  attended.commit(heads);
  work.commit(count * (hidden + 2 * intermediate));
  x.write(uniform(count * hidden)); // zeros would be multiplied faster: they take less power
  attended.write(uniform(count * heads * headDim));
  const run = () => device.kernels.attnOut(x, attended, model.weights.layers[0], null, work, count);
  run(); // kernels are loaded, algorithms chosen
  return 2 * count * hidden * (heads * headDim + 3 * intermediate) / await timed(arena, 8, run);
}

const BLOCK = 16 << 20;

/** Numbers around 0 whose products keep the size of their input, as bf16: sums of four uniform ones, from one seed. */
function randomBlock(deviation: number): Uint8Array {
  const bits = new Uint16Array(BLOCK / 2);
  const one = new Float32Array(1);
  const word = new Uint32Array(one.buffer);
  let state = 0x9e3779b9;
  for (let i = 0; i < bits.length; i++) {
    let sum = -2;
    for (let j = 0; j < 4; j++) {
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      sum += (state >>> 0) / 2 ** 32;
    }
    one[0] = sum * 1.7 * deviation;
    bits[i] = word[0] >>> 16;
  }
  return new Uint8Array(bits.buffer);
}

/** A file of ones (f32, a norm's weights), then of random numbers (bf16). */
function writeFile(
  path: string,
  norm: number,
  bytes: number,
  deviation: number,
): void {
  const file = openSync(path, "w");
  writeSync(file, new Uint8Array(new Float32Array(norm).fill(1).buffer));
  const block = randomBlock(deviation);
  for (let at = 0; at < bytes; at += BLOCK) {
    writeSync(file, block, 0, Math.min(BLOCK, bytes - at), 4 * norm + at);
  }
}

export async function randomModel(
  device: Device,
  shape: Shape,
): Promise<LoadedModel> {
  const { layers, hidden, heads, kvHeads, headDim, intermediate, vocab, tied } = shape;
  const folder = mkdtempSync(join(tmpdir(), "recallkv-bench-"));
  const path = join(folder, "weights");
  const random = Math.max(
    vocab * hidden * 2,
    hidden * (headDim * (2 * heads + 2 * kvHeads) + 3 * intermediate) * 2,
  );
  writeFile(path, hidden, random, 1 / Math.sqrt(hidden));
  let at = 4 * hidden;
  const matrix = (name: string, rows: number, cols: number): TensorSpan => {
    const span = {
      name,
      type: "bf16" as const,
      shape: [rows, cols],
      file: 0,
      offset: at,
      bytes: rows * cols * 2,
    };
    at += span.bytes;
    return span;
  };
  const norm = {
    name: "norm",
    type: "f32" as const,
    shape: [hidden],
    file: 0,
    offset: 0,
    bytes: 4 * hidden,
  };
  const layer: LayerWeights = {
    attnNorm: norm,
    q: matrix("q", heads * headDim, hidden),
    k: matrix("k", kvHeads * headDim, hidden),
    v: matrix("v", kvHeads * headDim, hidden),
    o: matrix("o", hidden, heads * headDim),
    qBias: null,
    kBias: null,
    vBias: null,
    oBias: null,
    qNorm: null,
    kNorm: null,
    ffnNorm: norm,
    gate: matrix("gate", intermediate, hidden),
    up: matrix("up", intermediate, hidden),
    down: matrix("down", hidden, intermediate),
  };
  at = 4 * hidden;
  const table = matrix("embed", vocab, hidden);
  const modelShape: ModelShape = {
    family: "llama",
    layers,
    hidden,
    heads,
    kvHeads,
    headDim,
    intermediate,
    vocab,
    normEps: 1e-5,
    trainedContext: 1 << 20,
    rope: {
      dim: headDim,
      interleaved: false,
      inverseFrequencies: Float64Array.from(
        { length: headDim / 2 },
        (_, i) => 5e5 ** (-2 * i / headDim),
      ),
      attentionFactor: 1,
    },
    window: new Array<null>(layers).fill(null),
    bos: null,
    eos: [],
    addBos: false,
  };
  const checkpoint: LoadedCheckpoint = {
    files: [path],
    shape: modelShape,
    weights: {
      embed: table,
      outputNorm: norm,
      output: tied ? null : table,
      layers: new Array<LayerWeights>(layers).fill(layer),
    },
    tokenizer: noTokenizer,
    chat: null,
  };
  const arena = device.arena(2 * weightBytes(checkpoint) + (1 << 28));
  try {
    const weights = await loadWeights(device, arena, checkpoint, {});
    return new LoadedModel(
      path,
      device,
      checkpoint,
      weights,
      arena,
      false,
      () => {},
    );
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const none = () => {
  throw new Error("Cannot tokenize: a model of random weights has no words");
};
const noTokenizer: Tokenizer = {
  encode: none,
  decode: none,
  decoder: none,
  tokenToId: none,
  idToToken: none,
  special: new Map(),
};
