/** The tokenizer library's adapter: a tokenizer.json, or what a GGUF vocabulary makes of one. */
import { Tokenizer as Library } from "@huggingface/tokenizers";
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
  readonly [field: string]: unknown;
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
  readonly #sealed: Library;
  readonly #named: Library;
  readonly #anyControl: RegExp | null;
  readonly #bos: number | null;

  constructor(json: TokenizerJson, bos: string | null) {
    const added = json.added_tokens ?? [];
    const mended = { ...json, added_tokens: added, pre_tokenizer: mendDigits(json.pre_tokenizer ?? null) };
    const sealed = added.map((token) => token.special ? { ...token, content: seal(token.id), normalized: false } : token);
    this.#named = new Library(mended, settings);
    this.#sealed = new Library({ ...mended, added_tokens: sealed }, settings);
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
    return this.#named.token_to_id(token) ?? null;
  }

  idToToken(id: number): string | null {
    return this.#named.id_to_token(id) ?? null;
  }
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
