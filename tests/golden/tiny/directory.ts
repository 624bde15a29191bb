/** Hugging Face directories of the tiny decoders, in memory: file name -> bytes. The tokenizer is the nano model's. */
import { readFileSync } from "node:fs";
import { type Dtype, encode } from "./blocks.ts";
import { normal } from "./random.ts";
import { CONTEXT, type DirectoryCase, HIDDEN, INTERMEDIATE, scalings, shapes, tensorsOf, VOCAB } from "./shapes.ts";

const classes = { llama: "LlamaForCausalLM", mistral: "MistralForCausalLM", qwen2: "Qwen2ForCausalLM", qwen3: "Qwen3ForCausalLM" };
const torchNames: Partial<Record<Dtype, string>> = { F32: "float32", F16: "float16", BF16: "bfloat16" };
const text = (value: unknown) => new TextEncoder().encode(JSON.stringify(value, null, 2) + "\n");

function configOf({ family, dtype, rope, window }: DirectoryCase): Record<string, unknown> {
  const shape = shapes[family], nano = JSON.parse(readFileSync(new URL("../../../models/nano/config.json", import.meta.url), "utf8"));
  const own: Record<string, unknown> = {
    llama: { attention_bias: false, mlp_bias: false },
    mistral: { sliding_window: window ?? null },
    qwen2: { use_sliding_window: false, sliding_window: 4096, max_window_layers: shape.layers },
    qwen3: { attention_bias: false, use_sliding_window: false, sliding_window: null, max_window_layers: shape.layers },
  };
  return {
    architectures: [classes[family]],
    model_type: family,
    vocab_size: VOCAB,
    hidden_size: HIDDEN,
    intermediate_size: INTERMEDIATE,
    num_hidden_layers: shape.layers,
    num_attention_heads: shape.heads,
    num_key_value_heads: shape.kvHeads,
    ...(shape.headDim * shape.heads === HIDDEN ? {} : { head_dim: shape.headDim }),
    hidden_act: "silu",
    rms_norm_eps: shape.eps,
    rope_theta: shape.theta,
    rope_scaling: rope ? scalings[rope] : null,
    max_position_embeddings: CONTEXT,
    tie_word_embeddings: shape.tied,
    attention_dropout: 0.0,
    ...own[family] as Record<string, unknown>,
    bos_token_id: nano.bos_token_id,
    eos_token_id: nano.eos_token_id,
    pad_token_id: nano.pad_token_id,
    torch_dtype: torchNames[dtype],
    use_cache: true,
  };
}

interface Named {
  name: string;
  shape: number[];
  bytes: Uint8Array<ArrayBuffer>;
}

function safetensors(tensors: Named[], dtype: string): Uint8Array<ArrayBuffer> {
  const header: Record<string, unknown> = { __metadata__: { format: "pt" } };
  let offset = 0;
  for (const { name, shape, bytes } of tensors) {
    header[name] = { dtype, shape, data_offsets: [offset, offset + bytes.length] };
    offset += bytes.length;
  }
  const json = JSON.stringify(header), head = new TextEncoder().encode(json + " ".repeat(-json.length & 7));
  const file = new Uint8Array(8 + head.length + offset);
  new DataView(file.buffer).setBigUint64(0, BigInt(head.length), true);
  file.set(head, 8);
  let at = 8 + head.length;
  for (const { bytes } of tensors) {
    file.set(bytes, at);
    at += bytes.length;
  }
  return file;
}

/** Every file of the directory of a case; the same bytes on every engine, and the same weights as the GGUF file of the family. */
export function directoryOf(one: DirectoryCase): Map<string, Uint8Array<ArrayBuffer>> {
  const files = new Map([["config.json", text(configOf(one))]]), shards = one.shards ?? 1;
  for (const name of ["generation_config.json", "tokenizer.json", "tokenizer_config.json"]) {
    files.set(name, new Uint8Array(readFileSync(new URL(`../../../models/nano/${name}`, import.meta.url))));
  }
  const tensors = tensorsOf(shapes[one.family]).map(({ gguf, hf, rows, width, mean, deviation }): Named => {
    const values = normal(`${one.family}:${gguf}`, (rows ?? 1) * width, deviation, mean);
    return { name: hf, shape: rows ? [rows, width] : [width], bytes: encode(values, one.dtype) };
  });
  if (shards === 1) return files.set("model.safetensors", safetensors(tensors, one.dtype));
  const map: Record<string, string> = {};
  for (let shard = 0; shard < shards; shard++) {
    const part = tensors.slice(Math.floor(shard * tensors.length / shards), Math.floor((shard + 1) * tensors.length / shards));
    const name = `model-${String(shard + 1).padStart(5, "0")}-of-${String(shards).padStart(5, "0")}.safetensors`;
    files.set(name, safetensors(part, one.dtype));
    for (const tensor of part) map[tensor.name] = name;
  }
  const total = tensors.reduce((sum, { bytes }) => sum + bytes.length, 0);
  return files.set("model.safetensors.index.json", text({ metadata: { total_size: total }, weight_map: map }));
}
