/** The tokenizer library's adapter: a tokenizer.json, or what a GGUF vocabulary makes of one. */
import { BPE, Tokenizer as Library } from "@huggingface/tokenizers";
import { count } from "../format.ts";
import type { EncodeOptions, TextDecoder, Tokenizer } from "./tokenizer.ts";

export interface AddedToken {
  readonly id: number;
  readonly content: string;
  /** A control token. */
  readonly special: boolean;
  readonly [field: string]: unknown;
}

/** The parts of tokenizer.json that the adapter itself looks at. */
export interface TokenizerJson {
  readonly added_tokens?: readonly AddedToken[];
  readonly pre_tokenizer?: unknown;
  readonly model?: unknown;
  readonly [field: string]: unknown;
}

/** A byte-pair model's vocabulary. */
export interface BytePairs {
  /** Token -> id. The tokenizer takes it over. */
  readonly vocab: Map<string, number>;
  /** The pairs that are joined, the first one first. */
  readonly merges: Iterable<readonly [left: string, right: string]>;
}

const settings = { clean_up_tokenization_spaces: false };

/**
 * Control tokens go through the library under names that no text can have: a lone surrogate around the id, for `encode` makes every
 * other text well-formed. What users write is then text to the library, whatever it looks like, and all its rules of spaces around
 * control tokens stay the library's own.
 */
const SEAL = "\uDFFF";

export class HuggingFaceTokenizer implements Tokenizer {
  readonly special: ReadonlyMap<string, number>;
  readonly #ids: ReadonlySet<number>;
  /** Encodes; the library's `named` has no rules of its own and decodes, for there control tokens bear their names. */
  readonly #sealed: Library;
  readonly #named: Library;
  readonly #anyControl: RegExp | null;
  readonly #bos: number | null;

  /** `pairs`: the vocabulary, where it is not in `json`. */
  constructor(json: TokenizerJson, bos: string | null, pairs: BytePairs | null = pairsOf(json.model)) {
    const added = json.added_tokens ?? [];
    const model = pairs ? { ...json.model as object, vocab: {}, merges: [] } : json.model;
    const mended = { ...json, model, added_tokens: added, pre_tokenizer: mendDigits(json.pre_tokenizer ?? null) };
    const sealed = added.map((token) => token.special ? { ...token, content: seal(token.id), normalized: false } : token);
    this.#sealed = new Library({ ...mended, added_tokens: sealed }, settings);
    if (pairs) fill(this.#sealed.model as BPE, pairs);
    const { vocab, end_of_word_suffix: suffix } = this.#sealed.model!;
    this.#named = new Library({ ...mended, model: { type: "BPE", vocab: {}, merges: [], end_of_word_suffix: suffix } }, settings);
    this.#named.model!.vocab = vocab.slice();
    for (const { id, content } of added) this.#named.model!.vocab[id] = content;
    this.special = new Map(added.filter(({ special }) => special).map(({ content, id }) => [content, id]));
    this.#ids = new Set(this.special.values());
    const longestFirst = [...this.special.keys()].sort((a, b) => b.length - a.length).map((text) => RegExp.escape(text));
    this.#anyControl = longestFirst.length > 0 ? new RegExp(longestFirst.join("|"), "gu") : null;
    this.#bos = bos === null ? null : this.special.get(bos) ?? null;
  }

  encode(text: string, { special = false, bos = false, breaker }: EncodeOptions = {}): number[] {
    let sealed = text.toWellFormed();
    if (special && this.#anyControl) sealed = sealed.replace(this.#anyControl, (control) => seal(this.special.get(control)!));
    if (breaker) sealed = sealed.replaceAll(breaker, "");
    const ids = sealed === "" ? [] : this.#sealed.encode(sealed, { add_special_tokens: false }).ids;
    return bos && this.#bos !== null ? [this.#bos, ...ids] : ids;
  }

  decode(tokens: readonly number[], { special = false }: { special?: boolean } = {}): string {
    const shown = special ? [...tokens] : tokens.filter((token) => !this.#ids.has(token));
    for (const token of shown) {
      if (this.idToToken(token) === null) {
        throw new RangeError(`Cannot decode: there is no token ${count(token)}, want one of the vocabulary`);
      }
    }
    return shown.length === 0 ? "" : this.#named.decode(shown, { skip_special_tokens: false, clean_up_tokenization_spaces: false });
  }

  decoder(): TextDecoder {
    // Tokens before `shown` have given their text. Those of the last piece stay, so that joins between tokens come right: they begin
    // with a whole character.
    let tokens: number[] = [];
    let shown = 0;
    const take = (whole: boolean): string => {
      const before = this.decode(tokens.slice(0, shown));
      const now = this.decode(tokens);
      if (now.length <= before.length || (!whole && now.endsWith("\uFFFD"))) return "";
      tokens = tokens.slice(shown);
      shown = tokens.length;
      return now.slice(before.length);
    };
    return {
      push: (token) => {
        if (this.#ids.has(token)) return "";
        tokens.push(token);
        return take(false);
      },
      end: () => take(true),
    };
  }

  tokenToId(token: string): number | null {
    return this.#named.token_to_id(token) ?? (token.includes(SEAL) ? null : this.#sealed.token_to_id(token) ?? null);
  }

  idToToken(id: number): string | null {
    return this.#named.id_to_token(id) ?? null;
  }
}

/** The vocabulary of a tokenizer.json; null for a model that is no byte-pair one, which the library reads itself. */
function pairsOf(model: unknown): BytePairs | null {
  const { type, vocab, merges } = (model ?? {}) as {
    type?: unknown;
    vocab?: Record<string, number>;
    merges?: (string | [string, string])[];
  };
  if (type !== "BPE" || typeof vocab !== "object" || vocab === null || !Array.isArray(merges)) return null;
  const ids = new Map<string, number>();
  for (const token in vocab) ids.set(token, vocab[token]);
  return {
    vocab: ids,
    merges: Iterator.from(merges).map((pair) => typeof pair === "string" ? pair.split(" ", 2) as [string, string] : pair),
  };
}

/**
 * Gives a byte-pair model its vocabulary. The library's constructor ends with the same maps, but comes there by way of lists of pairs, holds
 * these as well, and takes three times the memory.
 */
function fill(model: BPE, { vocab, merges }: BytePairs): void {
  const names: string[] = [];
  for (const [token, id] of vocab) names[id] = token;
  for (const [token, id] of model.tokens_to_ids) { // added tokens, which the library has put there
    vocab.set(token, id);
    names[id] = token;
  }
  model.vocab = names;
  model.tokens_to_ids = vocab;
  model.unk_token_id = vocab.get(model.unk_token!);
  let rank = 0;
  for (const pair of merges) model.bpe_ranks.set(JSON.stringify(pair), rank++);
}

function seal(id: number): string {
  return `${SEAL}${id}${SEAL}`;
}

/** The library's Digits knows 0 to 9; the format's means every numeric character ("½", "³"), as \p{N} does. */
function mendDigits(preTokenizer: unknown): unknown {
  if (typeof preTokenizer !== "object" || preTokenizer === null) return preTokenizer;
  const { type, individual_digits: single, pretokenizers: parts } = preTokenizer as Record<string, unknown>;
  if (type === "Digits") return { type: "Split", pattern: { Regex: single ? "\\p{N}" : "\\p{N}+" }, behavior: "Isolated", invert: false };
  return Array.isArray(parts) ? { ...preTokenizer, pretokenizers: parts.map(mendDigits) } : preTokenizer;
}
