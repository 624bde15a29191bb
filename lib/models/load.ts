/** A model's files -> what the decoder must know of it, where its weights lie, its tokenizer and chat template. */
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { type Checkpoint, FormatError } from "../formats/checkpoint.ts";
import { readSafetensors } from "../formats/safetensors.ts";
import { readTokenizer } from "../tokenizer/huggingface.ts";
import { checkConfig, type Config, findWeights } from "./family.ts";
import { families } from "./mod.ts";
import type { LoadedCheckpoint, ModelShape } from "./model.ts";
import { ropeOf } from "./rope.ts";

/** Reads a directory in Hugging Face's layout. Errors: FormatError for what is damaged or not supported; the system's for what is not there. */
export async function readModel(path: string): Promise<LoadedCheckpoint> {
  const found = await stat(path).catch(() => null);
  if (!found) throw new FormatError(path, "there is no such file or directory");
  if (!found.isDirectory()) throw new FormatError(path, "it is a file, want a directory with config.json, safetensors and tokenizer.json");
  const file = join(path, "config.json");
  const config = await readJson(file);
  const family = families[String(config.model_type)];
  if (!family) {
    throw new FormatError(file, `model_type is ${JSON.stringify(config.model_type)}, supported: ${Object.keys(families).join(", ")}`);
  }
  checkConfig(file, config, family);
  const generation = await readJson(join(path, "generation_config.json"), true);
  const shape = shapeOf(file, config, generation, family.name);
  const checkpoint = await readWeights(path);
  const weights = findWeights(file, checkpoint, shape, family, config.tie_word_embeddings === true);
  const { tokenizer, chatTemplate } = await readTokenizer(path);
  return { files: checkpoint.files, shape, weights, tokenizer, chatTemplate };
}

async function readWeights(path: string): Promise<Checkpoint> {
  for (const name of ["model.safetensors", "model.safetensors.index.json"]) {
    const file = join(path, name);
    if (await stat(file).catch(() => null)) return await readSafetensors(file);
  }
  throw new FormatError(path, "it has no model.safetensors and no model.safetensors.index.json");
}

async function readJson(file: string, optional = false): Promise<Config> {
  const text = await readFile(file, "utf8").catch((error) => {
    if (optional && error.code === "ENOENT") return "{}";
    throw new FormatError(file, error.code === "ENOENT" ? "it is not there" : String(error.message));
  });
  try {
    return JSON.parse(text);
  } catch {
    throw new FormatError(file, "it is not JSON");
  }
}

function shapeOf(file: string, config: Config, generation: Config, family: string): ModelShape {
  const whole = (field: string, value: unknown, fallback?: number): number => {
    const number = value ?? fallback;
    if (typeof number === "number" && Number.isInteger(number) && number > 0 && number < 2 ** 24) return number;
    throw new FormatError(file, `${field} is ${JSON.stringify(value)}, want a whole number from 1`);
  };
  const hidden = whole("hidden_size", config.hidden_size);
  const heads = whole("num_attention_heads", config.num_attention_heads);
  const kvHeads = whole("num_key_value_heads", config.num_key_value_heads, heads);
  const headDim = whole("head_dim", config.head_dim, hidden / heads);
  const layers = whole("num_hidden_layers", config.num_hidden_layers);
  if (heads % kvHeads !== 0) {
    throw new FormatError(file, `num_attention_heads is ${heads}, want a multiple of num_key_value_heads (${kvHeads})`);
  }
  if (headDim % 2 !== 0) throw new FormatError(file, `head_dim is ${headDim}, want an even number`);
  const eps = config.rms_norm_eps;
  if (typeof eps !== "number" || !(eps > 0 && eps < 1)) {
    throw new FormatError(file, `rms_norm_eps is ${JSON.stringify(eps)}, want a small positive number`);
  }
  const bos = config.bos_token_id ?? generation.bos_token_id ?? null;
  const eos = [generation.eos_token_id ?? config.eos_token_id ?? []].flat();
  return {
    family,
    layers,
    hidden,
    heads,
    kvHeads,
    headDim,
    intermediate: whole("intermediate_size", config.intermediate_size),
    vocab: whole("vocab_size", config.vocab_size),
    normEps: eps,
    trainedContext: whole("max_position_embeddings", config.max_position_embeddings),
    rope: { dim: headDim, interleaved: false, ...ropeOf(file, config, headDim) },
    window: new Array<number | null>(layers).fill(null),
    bos: bos as number | null,
    eos: eos as number[],
    addBos: bos !== null,
  };
}
