/** GGUF v3 files of the tiny decoders, in memory; and of the nano model, widened to F32. */
import { readFileSync } from "node:fs";
import { type Dtype, encode, formats, weights } from "./blocks.ts";
import { normal } from "./random.ts";
import { CONTEXT, type FileType, type GgufCase, HIDDEN, INTERMEDIATE, scalings, type Shape, shapes, tensorsOf, VOCAB } from "./shapes.ts";

/** Kinds of metadata values that these files need, with GGUF's numbers. */
const kinds = { u16: 2, u32: 4, i32: 5, f32: 6, bool: 7, string: 8, strings: 8, i32s: 5 };
type Kind = keyof typeof kinds;
type Entry = [key: string, kind: Kind, value: number | boolean | string | readonly (string | number)[]];

/** A tensor as the file holds it: dims as GGUF counts them, the row length first. */
interface Stored {
  name: string;
  dims: number[];
  dtype: Dtype;
  bytes: Uint8Array<ArrayBuffer>;
}

const ALIGNMENT = 32;
const nanoFile = (name: string) => new URL(`../../../models/nano/${name}`, import.meta.url);
const nanoJson = (name: string) => JSON.parse(readFileSync(nanoFile(name), "utf8"));

class Writer {
  readonly parts: Uint8Array<ArrayBuffer>[] = [];
  length = 0;
  put(bytes: Uint8Array<ArrayBuffer>): void {
    this.parts.push(bytes);
    this.length += bytes.length;
  }
  number(size: number, set: (view: DataView) => void): void {
    const bytes = new Uint8Array(size);
    set(new DataView(bytes.buffer));
    this.put(bytes);
  }
  u32 = (value: number) => this.number(4, (view) => view.setUint32(0, value, true));
  u64 = (value: number) => this.number(8, (view) => view.setBigUint64(0, BigInt(value), true));
  text(value: string): void {
    const bytes = new TextEncoder().encode(value);
    this.u64(bytes.length);
    this.put(bytes);
  }
  pad = () => this.put(new Uint8Array(-this.length & (ALIGNMENT - 1)));
  value(kind: Kind, value: Entry[2]): void {
    if (Array.isArray(value)) {
      this.u32(kinds[kind]);
      this.u64(value.length);
      for (const one of value) this.value(kind === "strings" ? "string" : "i32", one);
    } else if (kind === "string") this.text(value as string);
    else if (kind === "bool") this.put(new Uint8Array([value ? 1 : 0]));
    else if (kind === "u16") this.number(2, (view) => view.setUint16(0, value as number, true));
    else if (kind === "f32") this.number(4, (view) => view.setFloat32(0, value as number, true));
    else this.u32(value as number);
  }
  joined(): Uint8Array<ArrayBuffer> {
    const all = new Uint8Array(this.length);
    let at = 0;
    for (const part of this.parts) {
      all.set(part, at);
      at += part.length;
    }
    return all;
  }
}

function fileOf(metadata: Entry[], tensors: Stored[]): Uint8Array<ArrayBuffer> {
  const file = new Writer();
  file.put(new TextEncoder().encode("GGUF"));
  file.u32(3);
  file.u64(tensors.length);
  file.u64(metadata.length);
  for (const [key, kind, value] of metadata) {
    file.text(key);
    file.u32(Array.isArray(value) ? 9 : kinds[kind]);
    file.value(kind, value);
  }
  let offset = 0;
  for (const { name, dims, dtype, bytes } of tensors) {
    file.text(name);
    file.u32(dims.length);
    dims.forEach(file.u64);
    file.u32(formats[dtype].id);
    file.u64(offset);
    offset += bytes.length + (-bytes.length & (ALIGNMENT - 1));
  }
  file.pad();
  for (const { bytes } of tensors) {
    file.put(bytes);
    file.pad();
  }
  return file.joined();
}

/** One file, or several as llama.cpp splits them: metadata in the first, tensors in order, a count of both in each. */
function filesOf(metadata: Entry[], tensors: Stored[], parts: number): Uint8Array<ArrayBuffer>[] {
  if (parts === 1) return [fileOf(metadata, tensors)];
  return Array.from({ length: parts }, (_, part) => {
    const split: Entry[] = [["split.no", "u16", part], ["split.count", "u16", parts], ["split.tensors.count", "i32", tensors.length]];
    const begin = Math.floor(part * tensors.length / parts), end = Math.floor((part + 1) * tensors.length / parts);
    return fileOf(part === 0 ? [...metadata, ...split] : split, tensors.slice(begin, end));
  });
}

/** The nano model's tokenizer and chat template, as metadata. */
function vocabulary(): Entry[] {
  const { model, added_tokens: added } = nanoJson("tokenizer.json"), config = nanoJson("tokenizer_config.json");
  const ids = new Map<string, number>(Object.entries(model.vocab)), types: number[] = new Array(VOCAB).fill(1);
  for (const token of added) {
    ids.set(token.content, token.id);
    types[token.id] = 3;
  }
  const tokens: string[] = [];
  for (const [text, id] of ids) tokens[id] = text;
  const id = (name: string) => ids.get(config[name]) as number;
  return [
    ["tokenizer.ggml.model", "string", "gpt2"],
    ["tokenizer.ggml.pre", "string", "qwen2"],
    ["tokenizer.ggml.tokens", "strings", tokens],
    ["tokenizer.ggml.token_type", "i32s", types],
    ["tokenizer.ggml.merges", "strings", model.merges.map((m: string | string[]) => typeof m === "string" ? m : m.join(" "))],
    ["tokenizer.ggml.bos_token_id", "u32", id("bos_token")],
    ["tokenizer.ggml.eos_token_id", "u32", id("eos_token")],
    ["tokenizer.ggml.padding_token_id", "u32", id("pad_token")],
    ["tokenizer.ggml.add_bos_token", "bool", false],
    ["tokenizer.chat_template", "string", config.chat_template],
  ];
}

/** Mistral is written as "llama", as llama.cpp's converter does. */
const archOf = (shape: Shape) => shape.family === "mistral" ? "llama" : shape.family;

function metadataOf(name: string, shape: Shape, fileType: number, hidden: number, intermediate: number, context: number): Entry[] {
  const arch = archOf(shape);
  return [
    ["general.architecture", "string", arch],
    ["general.name", "string", name],
    ["general.file_type", "u32", fileType],
    ["general.quantization_version", "u32", 2],
    ["general.alignment", "u32", ALIGNMENT],
    [`${arch}.vocab_size`, "u32", VOCAB],
    [`${arch}.block_count`, "u32", shape.layers],
    [`${arch}.context_length`, "u32", context],
    [`${arch}.embedding_length`, "u32", hidden],
    [`${arch}.feed_forward_length`, "u32", intermediate],
    [`${arch}.attention.head_count`, "u32", shape.heads],
    [`${arch}.attention.head_count_kv`, "u32", shape.kvHeads],
    [`${arch}.attention.key_length`, "u32", shape.headDim],
    [`${arch}.attention.value_length`, "u32", shape.headDim],
    [`${arch}.attention.layer_norm_rms_epsilon`, "f32", shape.eps],
    [`${arch}.rope.dimension_count`, "u32", shape.headDim],
    [`${arch}.rope.freq_base`, "f32", shape.theta],
  ];
}

/**
 * The llama architecture's q and k rows come in another order: within a head, row i and row i + headDim / 2 stand side by side,
 * since llama.cpp rotates neighbours there.
 */
function interleaved(bytes: Uint8Array<ArrayBuffer>, rows: number, headDim: number): Uint8Array<ArrayBuffer> {
  const rowBytes = bytes.length / rows, out = new Uint8Array(bytes.length), half = headDim / 2;
  for (let row = 0; row < rows; row++) {
    const head = Math.floor(row / headDim), i = row % headDim;
    const to = head * headDim + (i < half ? 2 * i : 2 * (i - half) + 1);
    out.set(bytes.subarray(row * rowBytes, (row + 1) * rowBytes), to * rowBytes);
  }
  return out;
}

/** What llama3 scaling divides each frequency by; llama.cpp reads it from a tensor. Source: Llama 3.1's rope_scaling. */
function llama3Divisors(shape: Shape): Float32Array {
  const s = scalings.llama3 as Record<string, number>, original = s.original_max_position_embeddings;
  return Float32Array.from({ length: shape.headDim / 2 }, (_, i) => {
    const wavelength = 2 * Math.PI * shape.theta ** (2 * i / shape.headDim);
    if (wavelength < original / s.high_freq_factor) return 1;
    if (wavelength > original / s.low_freq_factor) return s.factor;
    const smooth = (original / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
    return 1 / ((1 - smooth) / s.factor + smooth);
  });
}

const mixes: Partial<Record<FileType, { base: Dtype; fileType: number }>> = {
  Q4_K_M: { base: "Q4_K", fileType: 15 },
  Q5_K_M: { base: "Q5_K", fileType: 17 },
};

/** The file of a case (or its parts); the same bytes on every engine. Float types of one family hold the same weights, rounded. */
export function ggufOf({ family, type, rope }: Omit<GgufCase, "name">, parts = 1): Uint8Array<ArrayBuffer>[] {
  const shape = shapes[family], mix = mixes[type], arch = archOf(shape);
  const metadata = metadataOf(`tiny-${family}`, shape, mix?.fileType ?? formats[type as Dtype].fileType, HIDDEN, INTERMEDIATE, CONTEXT);
  if (rope === "linear" || rope === "yarn") {
    metadata.push([`${arch}.rope.scaling.type`, "string", rope], [`${arch}.rope.scaling.factor`, "f32", scalings[rope].factor]);
    if (rope === "yarn") {
      metadata.push([`${arch}.rope.scaling.original_context_length`, "u32", scalings.yarn.original_max_position_embeddings]);
    }
  }
  const tensors = tensorsOf(shape).map(({ gguf, rows, width, mean, deviation, role }): Stored => {
    const seed = `${family}:${gguf}`;
    if (!rows) return { name: gguf, dims: [width], dtype: "F32", bytes: encode(normal(seed, width, deviation, mean), "F32") };
    const dtype = mix ? (role === "better" || role === "output" ? "Q6_K" : mix.base) : type as Dtype;
    const bytes = weights(seed, rows * width, deviation, dtype), turned = arch === "llama" && (role === "q" || role === "k");
    return { name: gguf, dims: [width, rows], dtype, bytes: turned ? interleaved(bytes, rows, shape.headDim) : bytes };
  });
  if (rope === "llama3") {
    tensors.push({ name: "rope_freqs.weight", dims: [shape.headDim / 2], dtype: "F32", bytes: encode(llama3Divisors(shape), "F32") });
  }
  return filesOf([...metadata, ...vocabulary()], tensors, parts);
}

/** models/nano with its BF16 weights widened to F32. */
export function nanoGguf(): Uint8Array<ArrayBuffer> {
  const config = nanoJson("config.json"), file = readFileSync(nanoFile("model.safetensors"));
  const view = new DataView(file.buffer, file.byteOffset, file.length), start = 8 + Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, start)));
  const shape: Shape = {
    family: "llama",
    layers: config.num_hidden_layers,
    heads: config.num_attention_heads,
    kvHeads: config.num_key_value_heads,
    headDim: config.head_dim,
    theta: config.rope_theta,
    eps: config.rms_norm_eps,
    tied: true,
  };
  const tensors = tensorsOf(shape).map(({ gguf, hf, role }): Stored => {
    const { shape: dims, data_offsets: [begin, end] } = header[hf];
    const bytes = new Uint8Array(2 * (end - begin));
    for (let i = begin; i < end; i += 2) bytes.set(file.subarray(start + i, start + i + 2), 2 * (i - begin) + 2);
    const turned = role === "q" || role === "k" ? interleaved(bytes, dims[0], shape.headDim) : bytes;
    return { name: gguf, dims: dims.toReversed(), dtype: "F32", bytes: turned };
  });
  const metadata = metadataOf("recallkv-nano", shape, 0, config.hidden_size, config.intermediate_size, config.max_position_embeddings);
  return fileOf([...metadata, ...vocabulary()], tensors);
}
