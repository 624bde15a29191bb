/** A model's files -> what the decoder must know of it, where its weights lie, its tokenizer and chat template. */
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { type Checkpoint, FormatError } from "../formats/checkpoint.ts";
import { readSafetensors } from "../formats/safetensors.ts";
import { readTokenizer } from "../tokenizer/directory.ts";
import { readGgufModel } from "./gguf.ts";
import { checkConfig, type Config, isTied, shapeOf } from "./huggingface.ts";
import { families } from "./mod.ts";
import type { LoadedCheckpoint, ModelSampling } from "./model.ts";
import { findWeights, huggingfaceNames } from "./weights.ts";

/** Reads a directory in Hugging Face's layout, or a GGUF file (any part of a split one). Errors: FormatError. */
export async function readModel(path: string): Promise<LoadedCheckpoint> {
  const found = await stat(path).catch(() => null);
  if (!found) throw new FormatError(path, "there is no such file or directory");
  if (found.isDirectory()) return await readDirectory(path);
  if (path.endsWith(".gguf")) return await readGgufModel(path);
  throw new FormatError(path, "it is a file, want a .gguf file, or a directory with config.json, safetensors and tokenizer.json");
}

async function readDirectory(path: string): Promise<LoadedCheckpoint> {
  const file = join(path, "config.json");
  const config = await readJson(file);
  const family = typeof config.model_type === "string" && Object.hasOwn(families, config.model_type) ? families[config.model_type] : null;
  if (!family) {
    throw new FormatError(file, `model_type is ${JSON.stringify(config.model_type)}, supported: ${Object.keys(families).join(", ")}`);
  }
  checkConfig(file, config, family);
  const generation = await readJson(join(path, "generation_config.json"), true);
  const shape = shapeOf(file, config, generation, family);
  const checkpoint = await readWeights(path);
  const weights = findWeights(file, checkpoint, shape, family, huggingfaceNames, isTied(file, config));
  const { tokenizer, chat, addBos } = await readTokenizer(path);
  const sampling = samplingOf(generation);
  return { files: checkpoint.files, shape: { ...shape, addBos: addBos && shape.bos !== null }, weights, tokenizer, chat, sampling };
}

/** What generation_config.json says of drawing tokens; nothing unless it says that they are drawn. */
function samplingOf(generation: Config): ModelSampling {
  if (generation.do_sample !== true) return {};
  const names = { temperature: "temperature", topK: "top_k", topP: "top_p", minP: "min_p", repetitionPenalty: "repetition_penalty" };
  const said = Object.entries(names).map(([name, theirs]) => [name, generation[theirs]]).filter(([, value]) => typeof value === "number");
  return { temperature: 1, ...Object.fromEntries(said) };
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
