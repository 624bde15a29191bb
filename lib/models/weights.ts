/** Finds a checkpoint's tensors by their names and holds each against the shape that the config gives. */
import { count } from "../format.ts";
import { type Checkpoint, FormatError, type TensorSpan } from "../formats/checkpoint.ts";
import { extras, type Family, type TensorNames } from "./family.ts";
import type { LayerWeights, ModelShape, ModelWeights } from "./model.ts";

const huggingfaceLayer: Readonly<Record<keyof LayerWeights, string>> = {
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
};

export const huggingfaceNames: TensorNames = {
  embed: "model.embed_tokens.weight",
  outputNorm: "model.norm.weight",
  output: "lm_head.weight",
  layer: (layer, weight) => `model.layers.${layer}.${huggingfaceLayer[weight]}`,
  isIdle: (name) => name.endsWith("rotary_emb.inv_freq"),
};

const ggufLayer: Readonly<Record<keyof LayerWeights, string>> = {
  attnNorm: "attn_norm.weight",
  q: "attn_q.weight",
  k: "attn_k.weight",
  v: "attn_v.weight",
  o: "attn_output.weight",
  qBias: "attn_q.bias",
  kBias: "attn_k.bias",
  vBias: "attn_v.bias",
  oBias: "attn_output.bias",
  qNorm: "attn_q_norm.weight",
  kNorm: "attn_k_norm.weight",
  ffnNorm: "ffn_norm.weight",
  gate: "ffn_gate.weight",
  up: "ffn_up.weight",
  down: "ffn_down.weight",
};

export const ggufNames: TensorNames = {
  embed: "token_embd.weight",
  outputNorm: "output_norm.weight",
  output: "output.weight",
  layer: (layer, weight) => `blk.${layer}.${ggufLayer[weight]}`,
  isIdle: (name) => name === "rope_freqs.weight" || name.endsWith("attn_rot_embd"), // the first is read as numbers
};

/** `file` is named in errors. `tied`: the output is the embedding table, whatever else the file holds. */
export function findWeights(
  file: string,
  checkpoint: Checkpoint,
  shape: ModelShape,
  family: Family,
  names: TensorNames,
  tied: boolean,
): ModelWeights {
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
  };
  const absent = new Set<string>(extras.filter((extra) => !family.extras.includes(extra)));
  const weights = Object.keys(shapes) as (keyof LayerWeights)[];
  const layers = Array.from({ length: shape.layers }, (_, l) => {
    const found = weights.map((weight) => [weight, absent.has(weight) ? null : find(names.layer(l, weight), shapes[weight])]);
    return Object.fromEntries(found) as LayerWeights;
  });
  const embed = find(names.embed, [vocab, hidden]);
  const outputNorm = find(names.outputNorm, [hidden]);
  const output = tied ? null : find(names.output, [vocab, hidden]);
  for (const name of checkpoint.tensors.keys()) {
    if (used.has(name) || names.isIdle(name) || (tied && name === names.output)) continue;
    throw new FormatError(file, `tensor ${name} has no place in ${family.name} with ${shape.layers} layers`);
  }
  return { embed, outputNorm, output, layers };
}
