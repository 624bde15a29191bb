/** A GGUF file's metadata: what it says of the model's shape, every key of the architecture honoured or refused by name. */
import { count } from "../format.ts";
import { FormatError } from "../formats/checkpoint.ts";
import { type GgufCheckpoint, readFloats, readGguf } from "../formats/gguf.ts";
import type { GgufMetadata, GgufValue } from "../formats/gguf_values.ts";
import { type GgufTokenizer, readGgufTokenizer } from "../tokenizer/gguf.ts";
import type { Family } from "./family.ts";
import { families } from "./mod.ts";
import type { LoadedCheckpoint, ModelShape } from "./model.ts";
import { type Frequencies, frequenciesOf, type RopeScaling, yarnAttentionFactor } from "./rope.ts";
import { findWeights, ggufNames } from "./weights.ts";

/** Keys of the architecture that change nothing of what a forward pass computes. */
const idle = new Set(["tensor_data_layout", "rope.scaling.finetuned"]);

/** Keys that change the result, with the only value supported. */
const only: Readonly<Record<string, GgufValue>> = {
  "attention.causal": true,
  "expert_count": 0,
  "expert_used_count": 0,
  "rope.scale_linear": 1,
  "logit_scale": 1,
  "residual_scale": 1,
  "embedding_scale": 1,
};

/** Reads a GGUF file, or all parts of a split one. Errors: FormatError. */
export async function readGgufModel(path: string): Promise<LoadedCheckpoint> {
  const checkpoint = await readGguf(path);
  const { metadata, tensors } = checkpoint;
  const architecture = metadata.get("general.architecture");
  const family = Object.values(families).find(({ architectures }) => architectures.includes(String(architecture)));
  if (!family) {
    const known = Object.values(families).flatMap(({ architectures }) => architectures);
    throw new FormatError(path, `general.architecture is ${JSON.stringify(architecture)}, supported: ${known.join(", ")}`);
  }
  const tokenizer = readGgufTokenizer(path, metadata);
  const keys = new Keys(path, metadata, String(architecture));
  const shape = await shapeOf(keys, checkpoint, family, tokenizer);
  keys.refuseOthers();
  const weights = findWeights(path, checkpoint, shape, family, ggufNames, !tensors.has(ggufNames.output));
  return { files: checkpoint.files, shape, weights, tokenizer: tokenizer.tokenizer, chat: tokenizer.chat };
}

/** The keys under an architecture's name, each asked for once. */
class Keys {
  readonly #asked = new Set<string>();

  constructor(readonly path: string, private readonly metadata: GgufMetadata, private readonly architecture: string) {}

  get(key: string): GgufValue | undefined {
    this.#asked.add(key);
    return this.metadata.get(`${this.architecture}.${key}`);
  }

  refuse(key: string, wanted: string): never {
    throw new FormatError(this.path, `${this.architecture}.${key} is ${shown(this.get(key))}, want ${wanted}`);
  }

  /** A whole number from 1. A list, a number for each layer, counts as one where all are alike. */
  whole(key: string, fallback?: number): number {
    const found = this.get(key) ?? fallback;
    const same = ArrayBuffer.isView(found) && found.length > 0 && found.every((one: number) => one === found[0]) ? found[0] : found;
    if (typeof same === "number" && Number.isInteger(same) && same > 0 && same < 2 ** 24) return same;
    return this.refuse(key, "a whole number from 1, the same in every layer");
  }

  positive(key: string, fallback?: number): number {
    const found = this.get(key) ?? fallback;
    if (typeof found === "number" && Number.isFinite(found) && found > 0) return found;
    return this.refuse(key, "a positive number");
  }

  /** Refuses the keys that nobody asked for. */
  refuseOthers(): void {
    for (const [name, value] of this.metadata) {
      if (!name.startsWith(`${this.architecture}.`)) continue;
      const key = name.slice(this.architecture.length + 1);
      if (this.#asked.has(key) || idle.has(key) || Object.hasOwn(only, key) && only[key] === value) continue;
      if (Object.hasOwn(only, key)) this.refuse(key, String(only[key]));
      throw new FormatError(this.path, `${name} (${shown(value)}) is not known to change nothing, so it is refused`);
    }
  }
}

async function shapeOf(keys: Keys, checkpoint: GgufCheckpoint, family: Family, tokenizer: GgufTokenizer): Promise<ModelShape> {
  const hidden = keys.whole("embedding_length");
  const heads = keys.whole("attention.head_count");
  const kvHeads = keys.whole("attention.head_count_kv", heads);
  const headDim = keys.whole("attention.key_length", hidden / heads);
  const layers = keys.whole("block_count");
  const trainedContext = keys.whole("context_length");
  if (heads % kvHeads !== 0) keys.refuse("attention.head_count", `a multiple of attention.head_count_kv (${kvHeads})`);
  if (headDim % 2 !== 0) keys.refuse("attention.key_length", "an even number");
  if (keys.whole("attention.value_length", headDim) !== headDim) {
    keys.refuse("attention.value_length", `${headDim}, as attention.key_length`);
  }
  if (keys.whole("rope.dimension_count", headDim) !== headDim) keys.refuse("rope.dimension_count", `${headDim}, the width of a head`);
  const embedding = checkpoint.tensors.get(ggufNames.embed)?.shape[0];
  const vocab = keys.whole("vocab_size", embedding);
  const window = keys.get("attention.sliding_window") === undefined ? null : keys.whole("attention.sliding_window");
  return {
    family: family.name,
    layers,
    hidden,
    heads,
    kvHeads,
    headDim,
    intermediate: keys.whole("feed_forward_length"),
    vocab,
    normEps: keys.positive("attention.layer_norm_rms_epsilon"),
    trainedContext,
    rope: { dim: headDim, interleaved: family.interleavedInGguf, ...await ropeOf(keys, checkpoint, headDim, trainedContext) },
    window: new Array<number | null>(layers).fill(window),
    bos: tokenizer.bos,
    eos: tokenizer.eos,
    addBos: tokenizer.addBos,
  };
}

async function ropeOf(keys: Keys, checkpoint: GgufCheckpoint, dim: number, trainedContext: number): Promise<Frequencies> {
  const theta = keys.positive("rope.freq_base", 10_000);
  const type = keys.get("rope.scaling.type") ?? "none";
  const scaling = (): RopeScaling => {
    if (type === "none") return { type };
    if (type === "linear") return { type, factor: keys.positive("rope.scaling.factor") };
    if (type === "yarn") {
      const factor = keys.positive("rope.scaling.factor");
      const context = keys.positive("rope.scaling.original_context_length", trainedContext);
      const [fast, slow] = [keys.positive("rope.scaling.yarn_beta_fast", 32), keys.positive("rope.scaling.yarn_beta_slow", 1)];
      const attentionFactor = keys.positive("rope.scaling.attn_factor", 1) * yarnAttentionFactor(factor);
      return { type, factor, context, fast, slow, whole: true, attentionFactor };
    }
    return keys.refuse("rope.scaling.type", "none, linear or yarn");
  };
  const scaled = scaling();
  if (scaled.type === "none") keys.get("rope.scaling.original_context_length"); // llama3 scaling names it beside its divisors
  const span = checkpoint.tensors.get("rope_freqs.weight");
  if (!span) return frequenciesOf(theta, dim, scaled);
  if (span.type !== "f32" || span.shape.length !== 1 || span.shape[0] !== dim / 2) {
    throw new FormatError(
      keys.path,
      `tensor rope_freqs.weight is ${span.type} [${span.shape.map(count).join(", ")}], want f32 [${dim / 2}]`,
    );
  }
  if (scaled.type !== "none") keys.refuse("rope.scaling.type", "none beside tensor rope_freqs.weight");
  const divisors = await readFloats(checkpoint, span);
  if (!divisors.every((divisor) => Number.isFinite(divisor) && divisor > 0)) {
    throw new FormatError(keys.path, "tensor rope_freqs.weight has a number that is not positive");
  }
  return frequenciesOf(theta, dim, { type: "divisors", divisors });
}

function shown(value: GgufValue | undefined): string {
  return ArrayBuffer.isView(value)
    ? `[${[...value.slice(0, 4)].join(", ")}${value.length > 4 ? ", …" : ""}]`
    : JSON.stringify(value) ?? "not there";
}
