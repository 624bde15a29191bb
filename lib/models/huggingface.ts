/** config.json of a Hugging Face directory: what it says of the model's shape, every field honoured or refused by name. */
import { isDeepStrictEqual } from "node:util";
import { FormatError } from "../formats/checkpoint.ts";
import type { Family } from "./family.ts";
import type { ModelShape } from "./model.ts";
import { type Frequencies, frequenciesOf, type RopeScaling, yarnAttentionFactor } from "./rope.ts";

export type Config = Readonly<Record<string, unknown>>;

/** Fields that every family reads. */
const honoured = new Set([
  ...["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"],
  ...["rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings", "tie_word_embeddings"],
  ...["bos_token_id", "eos_token_id", "pad_token_id", "model_type"],
]);

/** Fields that change nothing of what a forward pass computes. */
const idle = new Set([
  ...["architectures", "torch_dtype", "dtype", "use_cache", "transformers_version", "transformers.js_config", "initializer_range"],
  ...["_name_or_path", "attention_dropout", "hidden_dropout", "_attn_implementation", "auto_map", "rope_interleaved", "is_llama_config"],
  ...["max_sequence_length", "tokenizer_class", "unsloth_fixed", "unsloth_version", "_attn_implementation_autoset"],
  ...["output_attentions", "output_hidden_states", "return_dict"],
]);

/** Refuses a config that says what the family does not compute. */
export function checkConfig(file: string, config: Config, family: Family): void {
  for (const [field, value] of Object.entries(config)) {
    if (value === null || value === undefined) continue;
    const values = family.only[field];
    if (values) {
      if (values.includes(value)) continue;
      const wanted = values.map((one) => JSON.stringify(one)).join(", ");
      throw new FormatError(file, `${field} is ${JSON.stringify(value)}, supported with ${family.name}: ${wanted}`);
    }
    if (honoured.has(field) || idle.has(field) || family.known.includes(field)) continue;
    const found = `config field ${field} (${JSON.stringify(value)})`;
    throw new FormatError(file, `${found} is not known to change nothing, so it is refused with ${family.name}`);
  }
}

/** The shape that config.json and generation_config.json give. */
export function shapeOf(file: string, config: Config, generation: Config, family: Family): ModelShape {
  const whole = (field: string, fallback?: number) => wholeNumber(file, field, config[field] ?? fallback);
  const hidden = whole("hidden_size");
  const heads = whole("num_attention_heads");
  const kvHeads = whole("num_key_value_heads", heads);
  const headDim = whole("head_dim", hidden / heads);
  const layers = whole("num_hidden_layers");
  const vocab = whole("vocab_size");
  if (heads % kvHeads !== 0) {
    throw new FormatError(file, `num_attention_heads is ${heads}, want a multiple of num_key_value_heads (${kvHeads})`);
  }
  if (headDim % 2 !== 0) throw new FormatError(file, `head_dim is ${headDim}, want an even number`);
  const eps = config.rms_norm_eps;
  if (typeof eps !== "number" || !(eps > 0 && eps < 1)) {
    throw new FormatError(file, `rms_norm_eps is ${JSON.stringify(eps)}, want a small positive number`);
  }
  const token = (field: string, value: unknown): number => {
    if (Number.isInteger(value) && (value as number) >= 0 && (value as number) < vocab) return value as number;
    throw new FormatError(file, `${field} is ${JSON.stringify(value)}, want a token below vocab_size (${vocab})`);
  };
  const bos = config.bos_token_id ?? generation.bos_token_id ?? null;
  const eos = [generation.eos_token_id ?? config.eos_token_id ?? []].flat();
  const trainedContext = whole("max_position_embeddings");
  return {
    family: family.name,
    layers,
    hidden,
    heads,
    kvHeads,
    headDim,
    intermediate: whole("intermediate_size"),
    vocab,
    normEps: eps,
    trainedContext,
    rope: { dim: headDim, interleaved: false, ...ropeOf(file, config, headDim, trainedContext) },
    window: windows(file, config, family, layers),
    bos: bos === null ? null : token("bos_token_id", bos),
    eos: eos.map((id) => token("eos_token_id", id)),
    addBos: bos !== null,
  };
}

/** Whether the output is the embedding table; transformers takes an absent field for the family's default. */
export function isTied(file: string, config: Config): boolean {
  const tied = config.tie_word_embeddings ?? false;
  if (typeof tied === "boolean") return tied;
  throw new FormatError(file, `tie_word_embeddings is ${JSON.stringify(tied)}, want true or false`);
}

/** Per layer: positions that a layer sees, itself included, or null for all. */
function windows(file: string, config: Config, family: Family, layers: number): (number | null)[] {
  const first = config.max_window_layers ?? 0;
  if (!Number.isInteger(first) || (first as number) < 0) {
    throw new FormatError(file, `max_window_layers is ${JSON.stringify(first)}, want a whole number from 0`);
  }
  const isSliding = family.slides?.(config) ?? (() => false);
  const window = config.sliding_window === undefined ? family.window : config.sliding_window;
  const types = config.layer_types ?? null;
  if (types !== null && (!Array.isArray(types) || types.length !== layers)) {
    throw new FormatError(file, `layer_types is ${JSON.stringify(types)}, want one word for each of ${layers} layers`);
  }
  return Array.from({ length: layers }, (_, layer) => {
    const type = types?.[layer] ?? (isSliding(layer) ? "sliding_attention" : "full_attention");
    if (type === "full_attention") return null;
    if (type === "sliding_attention") return wholeNumber(file, "sliding_window", window);
    throw new FormatError(file, `layer_types names ${JSON.stringify(type)}, supported: full_attention, sliding_attention`);
  });
}

/** rope_scaling (transformers 4) or rope_parameters (5). */
function ropeOf(file: string, config: Config, dim: number, trainedContext: number): Frequencies {
  refuseTwo(file, "rope_parameters", config.rope_parameters, "rope_scaling", config.rope_scaling);
  const found = config.rope_parameters ?? config.rope_scaling ?? {};
  if (typeof found !== "object" || Array.isArray(found)) {
    throw new FormatError(file, `rope_scaling is ${JSON.stringify(found)}, want an object`);
  }
  const said = Object.fromEntries(Object.entries(found).filter(([, value]) => value !== null));
  refuseTwo(file, "rope_type", said.rope_type, "type", said.type);
  refuseTwo(file, "rope_theta", config.rope_theta, "rope_theta beside its type", said.rope_theta);
  const type = said.rope_type ?? said.type ?? "default";
  const fields = ["rope_type", "type", "rope_theta"];
  const number = (field: string, fallback?: number): number => {
    fields.push(field);
    return positive(file, `rope_scaling.${field}`, said[field] ?? fallback);
  };
  const scaling = (): RopeScaling => {
    if (type === "default") return { type: "none" };
    if (type === "linear") return { type: "linear", factor: number("factor") };
    if (type === "llama3") {
      const [low, high] = [number("low_freq_factor"), number("high_freq_factor")];
      return { type, factor: number("factor"), low, high, context: number("original_max_position_embeddings") };
    }
    if (type === "yarn") {
      const factor = number("factor");
      const [mscale, all] = [number("mscale", 1), number("mscale_all_dim", 1)];
      const both = said.mscale !== undefined && said.mscale_all_dim !== undefined;
      const usual = both ? yarnAttentionFactor(factor, mscale) / yarnAttentionFactor(factor, all) : yarnAttentionFactor(factor);
      const whole = said.truncate ?? true;
      fields.push("truncate");
      if (typeof whole !== "boolean") throw new FormatError(file, `rope_scaling.truncate is ${JSON.stringify(whole)}, want true or false`);
      const context = number("original_max_position_embeddings", trainedContext);
      const [fast, slow] = [number("beta_fast", 32), number("beta_slow", 1)];
      return { type, factor, context, fast, slow, whole, attentionFactor: number("attention_factor", usual) };
    }
    throw new FormatError(file, `rope_scaling type is ${JSON.stringify(type)}, supported: default, linear, llama3, yarn`);
  };
  const theta = positive(file, "rope_theta", config.rope_theta ?? said.rope_theta ?? 10_000);
  const frequencies = frequenciesOf(theta, dim, scaling());
  const unknown = Object.keys(said).find((field) => !fields.includes(field));
  if (unknown) {
    throw new FormatError(
      file,
      `rope_scaling.${unknown} is ${JSON.stringify(said[unknown])}, not supported with rope_scaling type ${type}`,
    );
  }
  return frequencies;
}

/** Of a field that has had two names or places, versions differ in which one wins. */
function refuseTwo(file: string, one: string, a: unknown, other: string, b: unknown): void {
  if (a === undefined || a === null || b === undefined || b === null || isDeepStrictEqual(a, b)) return;
  throw new FormatError(file, `${one} is ${JSON.stringify(a)}, but ${other} is ${JSON.stringify(b)}, want one of them, or the same`);
}

function positive(file: string, field: string, value: unknown): number {
  if (typeof value === "number" && Number.isFinite(value) && value > 0) return value;
  throw new FormatError(file, `${field} is ${JSON.stringify(value)}, want a positive number`);
}

function wholeNumber(file: string, field: string, value: unknown): number {
  if (typeof value === "number" && Number.isInteger(value) && value > 0 && value < 2 ** 24) return value;
  throw new FormatError(file, `${field} is ${JSON.stringify(value)}, want a whole number from 1`);
}
