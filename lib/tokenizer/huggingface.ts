/** The tokenizer library's adapter: tokenizer.json and tokenizer_config.json. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { Tokenizer as Library } from "@huggingface/tokenizers";
import { FormatError } from "../formats/checkpoint.ts";
import type { EncodeOptions, TextDecoder, Tokenizer } from "./tokenizer.ts";

/** The parts of tokenizer.json that the adapter itself looks at. */
export interface TokenizerJson {
  readonly added_tokens?: readonly { readonly id: number; readonly content: string; readonly special: boolean }[];
  readonly [field: string]: unknown;
}

/** Tokenizer and chat template of a directory. */
export async function readTokenizer(path: string): Promise<{ tokenizer: Tokenizer; chatTemplate: string | null }> {
  const read = async (name: string) => {
    const file = join(path, name);
    const text = await readFile(file, "utf8").catch((error) => {
      throw new FormatError(file, error.code === "ENOENT" ? "it is not there" : String(error.message));
    });
    try {
      return JSON.parse(text);
    } catch {
      throw new FormatError(file, "it is not JSON");
    }
  };
  const config = await read("tokenizer_config.json");
  const bos = typeof config.bos_token === "string" ? config.bos_token : config.bos_token?.content;
  const template = await readFile(join(path, "chat_template.jinja"), "utf8").catch(() => null);
  const chatTemplate = template ?? (typeof config.chat_template === "string" ? config.chat_template : null);
  return { tokenizer: new HuggingFaceTokenizer(await read("tokenizer.json"), bos ?? null), chatTemplate };
}

export class HuggingFaceTokenizer implements Tokenizer {
  readonly special: ReadonlyMap<string, number>;
  readonly #ids: ReadonlySet<number>;
  /** Knows the control tokens. */
  readonly #whole: Library;
  /** Does not: for what users write. */
  readonly #plain: Library;
  readonly #bos: number | null;

  constructor(json: TokenizerJson, bos: string | null) {
    const added = json.added_tokens ?? [];
    const settings = { clean_up_tokenization_spaces: false };
    this.#whole = new Library(json, settings);
    this.#plain = new Library({ ...json, added_tokens: added.filter(({ special }) => !special) }, settings);
    this.special = new Map(added.filter(({ special }) => special).map(({ content, id }) => [content, id]));
    this.#ids = new Set(this.special.values());
    this.#bos = bos === null ? null : this.special.get(bos) ?? null;
  }

  encode(text: string, { special = false, bos = false }: EncodeOptions = {}): number[] {
    const library = special ? this.#whole : this.#plain;
    const ids = text === "" ? [] : library.encode(text.toWellFormed(), { add_special_tokens: false }).ids;
    return bos && this.#bos !== null ? [this.#bos, ...ids] : ids;
  }

  decode(tokens: readonly number[], { special = false }: { special?: boolean } = {}): string {
    const shown = special ? [...tokens] : tokens.filter((token) => !this.#ids.has(token));
    return shown.length === 0 ? "" : this.#whole.decode(shown, { skip_special_tokens: !special, clean_up_tokenization_spaces: false });
  }

  decoder(): TextDecoder {
    // Two places in the tokens: text up to `read` was given out; decoding starts at `context`, so that joins between tokens come right.
    let tokens: number[] = [];
    let read = 0;
    const take = (whole: boolean): string => {
      const before = this.decode(tokens.slice(0, read));
      const now = this.decode(tokens);
      if (now.length <= before.length || (!whole && now.endsWith("\uFFFD"))) return "";
      tokens = tokens.slice(read);
      read = tokens.length;
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
    return this.#whole.token_to_id(token) ?? null;
  }

  idToToken(id: number): string | null {
    return this.#whole.id_to_token(id) ?? null;
  }
}
