/** How byte-level vocabularies take a text apart before they join bytes, by tokenizer.ggml.pre. */
import { FormatError } from "../formats/checkpoint.ts";

export interface PreTokenizer {
  /** Each takes the pieces of the one before it apart. */
  readonly splits: readonly string[];
  /** A piece that is a token is that token, whatever the merges say. */
  readonly ignoreMerges: boolean;
}

const shortened = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";
const rest = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const gpt2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const upper = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]", lower = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]";
const word = "[^\\r\\n\\p{L}\\p{N}]?";

const kinds: Readonly<Record<string, PreTokenizer>> = {
  gpt2: { splits: [gpt2], ignoreMerges: false },
  smollm: { splits: ["\\p{N}", gpt2], ignoreMerges: false },
  qwen2: { splits: [`${shortened}|${word}\\p{L}+|\\p{N}${rest}`], ignoreMerges: false },
  llama3: { splits: [`${shortened}|${word}\\p{L}+|\\p{N}{1,3}${rest}`], ignoreMerges: true },
  tekken: {
    splits: [`${word}${upper}*${lower}+|${word}${upper}+${lower}*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`],
    ignoreMerges: true,
  },
};

/** Names that files give them. Source: llama.cpp's llama-vocab.cpp. */
const names: Readonly<Record<string, PreTokenizer>> = {
  "gpt-2": kinds.gpt2,
  "phi-2": kinds.gpt2,
  "smollm": kinds.smollm,
  "qwen2": kinds.qwen2,
  "deepseek-r1-qwen": kinds.qwen2,
  "llama3": kinds.llama3,
  "llama-v3": kinds.llama3,
  "llama-bpe": kinds.llama3,
  "tekken": kinds.tekken,
};

/** Errors: FormatError for a name that is not known, for another split gives other tokens. */
export function splitsOf(file: string, name: unknown): PreTokenizer {
  if (typeof name === "string" && Object.hasOwn(names, name)) return names[name];
  throw new FormatError(file, `tokenizer.ggml.pre is ${JSON.stringify(name)}, supported: ${Object.keys(names).join(", ")}`);
}
