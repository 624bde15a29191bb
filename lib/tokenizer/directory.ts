/** Tokenizer and chat template of a Hugging Face directory. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { FormatError } from "../formats/checkpoint.ts";
import { readJson } from "../formats/json_file.ts";
import { beginsWithBos, ChatTemplate } from "./chat.ts";
import { HuggingFaceTokenizer } from "./huggingface.ts";
import type { Tokenizer } from "./tokenizer.ts";

export interface DirectoryTokenizer {
  readonly tokenizer: Tokenizer;
  readonly chat: ChatTemplate | null;
  /** Whether a text begins with bos_token: the tokenizer puts it there, or the chat template does. */
  readonly addBos: boolean;
}

/** Errors: FormatError naming the file that is missing, no JSON, or holds what the tokenizer library does not know. */
export async function readTokenizer(path: string): Promise<DirectoryTokenizer> {
  const config = await readJson(join(path, "tokenizer_config.json"));
  const names = Object.fromEntries(
    ["bos_token", "eos_token", "pad_token", "unk_token"].flatMap((field) => {
      const said = config[field];
      const text = typeof said === "string" ? said : (said as { content?: unknown } | null | undefined)?.content;
      return typeof text === "string" ? [[field, text]] : [];
    }),
  );
  const file = join(path, "tokenizer.json");
  const json = await readJson(file);
  let tokenizer: Tokenizer;
  try {
    tokenizer = new HuggingFaceTokenizer(json, names.bos_token ?? null);
  } catch (error) {
    throw new FormatError(file, `the tokenizer library refuses it: ${(error as Error).message}`);
  }
  const source = await readFile(join(path, "chat_template.jinja"), "utf8").catch(() => templateOf(config.chat_template));
  const chat = source === null ? null : new ChatTemplate(source, names);
  const bos = names.bos_token;
  const addBos = bos !== undefined && (config.add_bos_token === true || puts(json.post_processor, bos) || beginsWithBos(source));
  return { tokenizer, chat, addBos };
}

/** Whether a post-processor puts a special token before a single text. */
function puts(processor: unknown, token: string): boolean {
  const { type, single, processors } = (processor ?? {}) as { type?: string; single?: unknown[]; processors?: unknown[] };
  if (type === "Sequence") return (processors ?? []).some((one) => puts(one, token));
  const first = single?.[0] as { SpecialToken?: { id?: unknown } } | undefined;
  return type === "TemplateProcessing" && first?.SpecialToken?.id === token;
}

/** One template, or a list of them by name. */
function templateOf(said: unknown): string | null {
  if (typeof said === "string") return said;
  if (!Array.isArray(said)) return null;
  const named = said.find((one) => one?.name === "default") as { template?: unknown } | undefined;
  return typeof named?.template === "string" ? named.template : null;
}
