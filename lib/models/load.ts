/** A model's files -> what the decoder must know of it, where its weights lie, its tokenizer and chat template. */
import { open, readdir, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { FormatError } from "../formats/checkpoint.ts";
import { readJson } from "../formats/json_file.ts";
import { readSafetensors } from "../formats/safetensors.ts";
import { readTokenizer } from "../tokenizer/directory.ts";
import { readGgufModel } from "./gguf.ts";
import { checkConfig, type Config, isTied, shapeOf } from "./huggingface.ts";
import { families } from "./mod.ts";
import type { LoadedCheckpoint, ModelSampling } from "./model.ts";
import { findWeights, huggingfaceNames } from "./weights.ts";

/** Reads a directory in Hugging Face's layout, or a GGUF file (any part of a split one), whatever its name. Errors: FormatError. */
export async function readModel(path: string): Promise<LoadedCheckpoint> {
  const found = await stat(path).catch(() => null);
  if (!found) throw new FormatError(path, `there is no such file or directory${dirname(path) === "." ? "" : ` in ${dirname(path)}`}`);
  if (found.isDirectory()) return await readDirectory(path);
  if (path.endsWith(".gguf") || found.isFile() && await beginsAsGguf(path)) return await readGgufModel(path);
  if (path.endsWith(".safetensors")) {
    throw new FormatError(path, "it is one file of a model, want its directory, where config.json and tokenizer.json are");
  }
  throw new FormatError(path, "it is no GGUF file, want one, or a directory with config.json, safetensors and tokenizer.json");
}

async function beginsAsGguf(path: string): Promise<boolean> {
  const file = await open(path, "r").catch((error) => {
    throw new FormatError(path, error.message);
  });
  const { buffer } = await file.read(new Uint8Array(4), 0, 4, 0).finally(() => file.close());
  return new TextDecoder().decode(buffer) === "GGUF";
}

async function readDirectory(path: string): Promise<LoadedCheckpoint> {
  const names = await readdir(path);
  const ggufs = names.filter((name) => name.endsWith(".gguf")).sort();
  const instead = ggufs.length > 0 ? ` (or name its file ${ggufs[0]})` : "";
  if (!names.includes("config.json")) {
    throw new FormatError(path, `it has no config.json, want a directory in Hugging Face's layout${instead}`);
  }
  const file = join(path, "config.json");
  const config = await readJson(file);
  const family = typeof config.model_type === "string" && Object.hasOwn(families, config.model_type) ? families[config.model_type] : null;
  if (!family) {
    throw new FormatError(file, `model_type is ${JSON.stringify(config.model_type)}, supported: ${Object.keys(families).join(", ")}`);
  }
  checkConfig(file, config, family);
  const generation = await readJson(join(path, "generation_config.json"), { optional: true });
  const shape = shapeOf(file, config, generation, family);
  const weightsFile = ["model.safetensors", "model.safetensors.index.json"].find((name) => names.includes(name));
  if (weightsFile === undefined) {
    throw new FormatError(path, `it has no model.safetensors and no model.safetensors.index.json, want one of them${instead}`);
  }
  const checkpoint = await readSafetensors(join(path, weightsFile));
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
