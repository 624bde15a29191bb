/** A GGUF vocabulary and chat template -> the tokenizer library's form. */
import { count } from "../format.ts";
import { FormatError } from "../formats/checkpoint.ts";
import type { GgufMetadata } from "../formats/gguf_values.ts";
import { beginsWithBos, ChatTemplate } from "./chat.ts";
import { type AddedToken, type BytePairs, HuggingFaceTokenizer, type TokenizerJson } from "./huggingface.ts";
import { splitsOf } from "./pre_tokenizers.ts";
import type { Tokenizer } from "./tokenizer.ts";

export interface GgufTokenizer {
  readonly tokenizer: Tokenizer;
  readonly chat: ChatTemplate | null;
  readonly bos: number | null;
  /** Tokens that end a text. */
  readonly eos: readonly number[];
  readonly addBos: boolean;
}

/** Values of tokenizer.ggml.token_type. */
const NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER_DEFINED = 4;

/** Control tokens that end a turn in every model that has them, though few files name more than one end. */
const ends = new Set(["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>", "<|eos|>"]);

interface Vocabulary {
  readonly tokens: readonly string[];
  readonly types: ArrayLike<number>;
  /** Token -> id, control tokens left out: no text may reach them. */
  readonly vocab: Map<string, number>;
}

/** All but the vocabulary of a tokenizer.json, and the vocabulary. */
type Parts = readonly [json: TokenizerJson, pairs: BytePairs];

/** Errors: FormatError naming the key that is missing, damaged or not supported. */
export function readGgufTokenizer(file: string, metadata: GgufMetadata): GgufTokenizer {
  const tokens = listOfTexts(file, metadata, "tokenizer.ggml.tokens");
  const types = metadata.get("tokenizer.ggml.token_type") ?? new Int32Array(tokens.length).fill(NORMAL);
  if (!isNumbers(types) || types.length !== tokens.length) {
    throw new FormatError(file, `tokenizer.ggml.token_type is not a number for each of ${count(tokens.length)} tokens`);
  }
  const vocab = new Map<string, number>();
  for (const [id, token] of tokens.entries()) if (types[id] !== CONTROL) vocab.set(token, id);
  const vocabulary = { tokens, types, vocab };
  const kind = metadata.get("tokenizer.ggml.model");
  const pre = metadata.get("tokenizer.ggml.pre");
  if (kind !== "gpt2" && kind !== "llama") {
    throw new FormatError(file, `tokenizer.ggml.model is ${JSON.stringify(kind)}, supported: gpt2 (byte-level BPE), llama (SentencePiece)`);
  }
  const [json, pairs] = kind === "gpt2" ? byteLevel(file, metadata, vocabulary) : sentencePiece(file, metadata, vocabulary);
  const id = (name: string): number | null => {
    const found = metadata.get(`tokenizer.ggml.${name}_token_id`);
    if (found === undefined) return null;
    if (typeof found === "number" && Number.isInteger(found) && found >= 0 && found < tokens.length) return found;
    throw new FormatError(file, `tokenizer.ggml.${name}_token_id is ${String(found)}, want a token below ${count(tokens.length)}`);
  };
  const bos = id("bos");
  const named = [id("eos"), id("eot"), id("eom")].filter((token) => token !== null);
  const usual = tokens.flatMap((token, i) => types[i] === CONTROL && ends.has(token) ? [i] : []);
  const addBos = metadata.get("tokenizer.ggml.add_bos_token") ?? (kind === "llama" || pre === "llama-bpe" || pre === "tekken");
  const template = metadata.get("tokenizer.chat_template");
  const texts = ["bos", "eos", "padding", "unknown"].flatMap((name) => {
    const token = id(name);
    return token === null ? [] : [[{ padding: "pad_token", unknown: "unk_token" }[name] ?? `${name}_token`, tokens[token]]];
  });
  return {
    tokenizer: new HuggingFaceTokenizer(json, bos === null ? null : tokens[bos], pairs),
    chat: typeof template === "string" ? new ChatTemplate(template, Object.fromEntries(texts)) : null,
    bos,
    eos: [...new Set([...named, ...usual])],
    addBos: bos !== null && (addBos === true || beginsWithBos(template)), // the model was trained on texts that begin so
  };
}

function addedTokens({ tokens, types }: Vocabulary): AddedToken[] {
  return tokens.flatMap((content, id) => {
    if (types[id] !== CONTROL && types[id] !== USER_DEFINED) return [];
    return [{ id, content, special: types[id] === CONTROL, lstrip: false, rstrip: false, single_word: false, normalized: false }];
  });
}

function byteLevel(file: string, metadata: GgufMetadata, vocabulary: Vocabulary): Parts {
  const pre = metadata.get("tokenizer.ggml.pre");
  const { splits, ignoreMerges } = splitsOf(file, pre);
  const merges = Iterator.from(listOfTexts(file, metadata, "tokenizer.ggml.merges")).map((merge): [string, string] => {
    const space = merge.indexOf(" ", 1);
    if (space < 0) {
      throw new FormatError(file, `tokenizer.ggml.merges has ${JSON.stringify(merge)}, want two texts and a space between them`);
    }
    return [merge.slice(0, space), merge.slice(space + 1)];
  });
  const pretokenizers = [
    ...splits.map((Regex) => ({ type: "Split", pattern: { Regex }, behavior: "Isolated", invert: false })),
    { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false },
  ];
  const json = {
    version: "1.0",
    added_tokens: addedTokens(vocabulary),
    normalizer: null,
    pre_tokenizer: { type: "Sequence", pretokenizers },
    post_processor: null,
    decoder: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false },
    model: { type: "BPE", ignore_merges: ignoreMerges, byte_fallback: false },
  };
  return [json, { vocab: vocabulary.vocab, merges }];
}

/** SentencePiece joins the pair whose token scores best, so every way to cut a token in two is a merge, ranked by the token's score. */
function sentencePiece(file: string, metadata: GgufMetadata, vocabulary: Vocabulary): Parts {
  const { tokens, types, vocab } = vocabulary;
  const scores = metadata.get("tokenizer.ggml.scores");
  if (!isNumbers(scores) || scores.length !== tokens.length) {
    throw new FormatError(file, `tokenizer.ggml.scores is not a number for each of ${count(tokens.length)} tokens`);
  }
  if (metadata.get("tokenizer.ggml.remove_extra_whitespaces") === true) {
    throw new FormatError(file, "tokenizer.ggml.remove_extra_whitespaces is true, supported: false");
  }
  const merges: { left: string; right: string; id: number }[] = [];
  for (const [id, token] of tokens.entries()) {
    if (types[id] !== NORMAL) continue;
    const letters = [...token];
    for (let cut = 1; cut < letters.length; cut++) {
      const left = letters.slice(0, cut).join(""), right = letters.slice(cut).join("");
      if (vocab.has(left) && vocab.has(right)) merges.push({ left, right, id });
    }
  }
  merges.sort((a, b) =>
    scores[b.id] - scores[a.id] || vocab.get(a.left)! - vocab.get(b.left)! || vocab.get(a.right)! - vocab.get(b.right)!
  );
  const prefix = metadata.get("tokenizer.ggml.add_space_prefix") ?? true;
  const spaces = { type: "Replace", pattern: { String: " " }, content: "▁" };
  const strip = { type: "Strip", content: " ", start: 1, stop: 0 };
  const unknown = [...tokens.keys()].find((id) => types[id] === UNKNOWN) ?? 0;
  const json = {
    version: "1.0",
    added_tokens: addedTokens(vocabulary),
    normalizer: { type: "Sequence", normalizers: [...(prefix ? [{ type: "Prepend", prepend: "▁" }] : []), spaces] },
    pre_tokenizer: null,
    post_processor: null,
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: "▁" }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        ...(prefix ? [strip] : []),
      ],
    },
    model: { type: "BPE", byte_fallback: true, fuse_unk: true, unk_token: tokens[unknown] },
  };
  return [json, { vocab, merges: Iterator.from(merges).map(({ left, right }): [string, string] => [left, right]) }];
}

function listOfTexts(file: string, metadata: GgufMetadata, key: string): readonly string[] {
  const found = metadata.get(key);
  if (Array.isArray(found) && found.length > 0) return found as string[];
  throw new FormatError(file, `${key} is ${found === undefined ? "not there" : "no list of texts"}, want the vocabulary`);
}

function isNumbers(value: unknown): value is Int32Array | Float32Array {
  return ArrayBuffer.isView(value);
}
