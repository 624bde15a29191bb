/** Text to tokens and back. What users write never becomes a control token unless one asks for it. */

export interface EncodeOptions {
  /** Control tokens written in the text ("<|end|>") become control tokens; they stay text unless said. */
  special?: boolean;
  /** Put the token in front that begins a text. */
  bos?: boolean;
  /** With `special`: a character that was written into a control token so that it stays text. It is taken out. */
  breaker?: string;
}

/** Tokens that come one by one, as text. */
export interface TextDecoder {
  /** The text that a token completes; empty while a character is still cut, and for control tokens. */
  push(token: number): string;
  /** What is left. */
  end(): string;
}

/** Text to tokens and back. */
export interface Tokenizer {
  /** Tokens of a text. Lone surrogates become U+FFFD. */
  encode(text: string, options?: EncodeOptions): number[];
  /** Text of tokens, without control tokens unless `special`. */
  decode(tokens: readonly number[], options?: { special?: boolean }): string;
  /** Text of tokens that come one by one; no character is ever split. */
  decoder(): TextDecoder;
  /** The id of a token by its text, as the vocabulary writes it. */
  tokenToId(token: string): number | null;
  /** The text of a token, as the vocabulary writes it. */
  idToToken(id: number): string | null;
  /** Control tokens: text -> id. */
  readonly special: ReadonlyMap<string, number>;
}
