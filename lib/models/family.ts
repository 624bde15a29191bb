/** A model family is data: names of its weights, what it has beside the common parts, and which config fields it stands for. */
import { count } from "../format.ts";
import { type Checkpoint, FormatError, type TensorSpan } from "../formats/checkpoint.ts";
import type { LayerWeights, ModelShape, ModelWeights } from "./model.ts";

export type Config = Readonly<Record<string, unknown>>;

export interface Family {
  /** model_type of config.json. */
  readonly name: string;
  /** Vectors beside the common weights of a layer. */
  readonly extras: readonly ("qBias" | "kBias" | "vBias" | "oBias" | "qNorm" | "kNorm")[];
  /** Config fields that change the result, with the only values supported. A field that is absent or null is fine. */
  readonly only: Readonly<Record<string, readonly unknown[]>>;
  /** Config fields that are honoured, or that change nothing of the result. Any other field is refused by name. */
  readonly known: readonly string[];
}

/** Fields that every family reads. */
export const commonFields = [
  "vocab_size",
  "hidden_size",
  "intermediate_size",
  "num_hidden_layers",
  "num_attention_heads",
  "num_key_value_heads",
  "head_dim",
  "rms_norm_eps",
  "rope_theta",
  "rope_scaling",
  "rope_parameters",
  "max_position_embeddings",
  "tie_word_embeddings",
  "bos_token_id",
  "eos_token_id",
  "pad_token_id",
] as const; // deno-fmt-ignore

/** Fields that change nothing of what a forward pass computes. */
export const idleFields = [
  "architectures", "model_type", "torch_dtype", "dtype", "use_cache", "transformers_version", "initializer_range", "_name_or_path",
  "attention_dropout", "hidden_dropout", "_attn_implementation", "auto_map", "rope_interleaved", "is_llama_config",
] as const; // deno-fmt-ignore

const layerNames = {
  attnNorm: "input_layernorm.weight",
  q: "self_attn.q_proj.weight",
  k: "self_attn.k_proj.weight",
  v: "self_attn.v_proj.weight",
  o: "self_attn.o_proj.weight",
  qBias: "self_attn.q_proj.bias",
  kBias: "self_attn.k_proj.bias",
  vBias: "self_attn.v_proj.bias",
  oBias: "self_attn.o_proj.bias",
  qNorm: "self_attn.q_norm.weight",
  kNorm: "self_attn.k_norm.weight",
  ffnNorm: "post_attention_layernorm.weight",
  gate: "mlp.gate_proj.weight",
  up: "mlp.up_proj.weight",
  down: "mlp.down_proj.weight",
} as const;

/** Refuses a config that says what the family does not compute. */
export function checkConfig(file: string, config: Config, family: Family): void {
  for (const [field, value] of Object.entries(config)) {
    if (value === null || value === undefined) continue;
    const values = family.only[field];
    if (values) {
      if (!values.includes(value)) {
        throw new FormatError(
          file,
          `${field} is ${JSON.stringify(value)}, supported with ${family.name}: ${values.map((v) => JSON.stringify(v)).join(", ")}`,
        );
      }
    } else if (![...commonFields, ...idleFields, ...family.known].includes(field)) {
      throw new FormatError(
        file,
        `config field ${field} (${JSON.stringify(value)}) is not known to change nothing, so it is refused with ${family.name}`,
      );
    }
  }
}

/** Finds the weights of a Hugging Face checkpoint and holds their shapes against the config. */
export function findWeights(file: string, checkpoint: Checkpoint, shape: ModelShape, family: Family, tied: boolean): ModelWeights {
  const { hidden, heads, kvHeads, headDim, intermediate, vocab } = shape;
  const [q, kv] = [heads * headDim, kvHeads * headDim];
  const used = new Set<string>();
  const find = (name: string, wanted: readonly number[]): TensorSpan => {
    const span = checkpoint.tensors.get(name);
    if (!span) throw new FormatError(file, `it has no tensor ${name}, want one of [${wanted.map(count).join(", ")}]`);
    if (span.shape.length !== wanted.length || span.shape.some((extent, i) => extent !== wanted[i])) {
      throw new FormatError(file, `tensor ${name} is [${span.shape.map(count).join(", ")}], want [${wanted.map(count).join(", ")}]`);
    }
    used.add(name);
    return span;
  };
  const shapes: Record<keyof LayerWeights, readonly number[]> = {
    attnNorm: [hidden],
    q: [q, hidden],
    k: [kv, hidden],
    v: [kv, hidden],
    o: [hidden, q],
    qBias: [q],
    kBias: [kv],
    vBias: [kv],
    oBias: [hidden],
    qNorm: [headDim],
    kNorm: [headDim],
    ffnNorm: [hidden],
    gate: [intermediate, hidden],
    up: [intermediate, hidden],
    down: [hidden, intermediate],
  }; // deno-fmt-ignore
  const optional = new Set<string>(["qBias", "kBias", "vBias", "oBias", "qNorm", "kNorm"].filter((name) => !family.extras.includes(name as never)));
  const layers = Array.from({ length: shape.layers }, (_, l) =>
    Object.fromEntries(
      Object.entries(layerNames).map(([name, tensor]) => [
        name,
        optional.has(name) ? null : find(`model.layers.${l}.${tensor}`, shapes[name as keyof LayerWeights]),
      ]),
    ) as unknown as LayerWeights);
  const embed = find("model.embed_tokens.weight", [vocab, hidden]);
  const outputNorm = find("model.norm.weight", [hidden]);
  const output = tied ? null : find("lm_head.weight", [vocab, hidden]);
  for (const name of checkpoint.tensors.keys()) {
    const idle = name.endsWith("rotary_emb.inv_freq") || (tied && name === "lm_head.weight");
    if (!used.has(name) && !idle) throw new FormatError(file, `tensor ${name} has no place in ${family.name} with ${shape.layers} layers`);
  }
  return { embed, outputNorm, output, layers };
}
