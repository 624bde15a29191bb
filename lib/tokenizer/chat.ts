/** Chat templates: messages to tokens. Only the template's own parts become control tokens, never what a message says. */
import { Template } from "@huggingface/jinja";
import type { Tokenizer } from "./tokenizer.ts";

/** What somebody said. */
export interface ChatMessage {
  /** "system", "user", "assistant", or what else the template knows: letters, digits, - and _. */
  readonly role: string;
  /** What was said. */
  readonly content: string;
  /** What else the template reads of a message. */
  readonly [field: string]: unknown;
}

export interface ChatTemplateOptions {
  /** Ends where the assistant begins to speak; true unless said. */
  addGenerationPrompt?: boolean;
  /** What else the template reads: tools, documents, enable_thinking. */
  variables?: Readonly<Record<string, unknown>>;
}

/** Stands in no text for interchange; written into a message's text it keeps a control token from being read there. */
const BREAKER = "\uFDD0";

export class ChatTemplate {
  #template: Template | undefined;

  /** `names`: the texts of bos_token, eos_token and their like. */
  constructor(readonly source: string, private readonly names: Readonly<Record<string, string>>) {}

  /** The text of a conversation, control tokens spelled out. Errors: RangeError for messages that the template refuses. */
  render(messages: readonly ChatMessage[], options: ChatTemplateOptions = {}): string {
    return this.#render(messages, options, (text) => text);
  }

  /** Tokens of a conversation. Errors as `render`. */
  encode(tokenizer: Tokenizer, messages: readonly ChatMessage[], options: ChatTemplateOptions = {}): number[] {
    const broken = this.#render(messages, options, breakerOf(tokenizer, this.source));
    return tokenizer.encode(broken, { special: true, breaker: BREAKER });
  }

  #render(messages: readonly ChatMessage[], options: ChatTemplateOptions, change: (text: string) => string): string {
    const { addGenerationPrompt = true, variables = {} } = options;
    for (const { role } of messages) {
      if (typeof role !== "string" || !/^[\w-]+$/.test(role)) {
        throw new RangeError(`Cannot apply the chat template: a role is ${JSON.stringify(role)}, want letters, digits, - or _`);
      }
    }
    try {
      this.#template ??= new Template(this.source);
      const said = messages.map((message) => ({ ...changed(message, change) as ChatMessage, role: message.role }));
      const rest = changed(variables, change) as Record<string, unknown>;
      return this.#template.render({ ...this.names, ...rest, messages: said, add_generation_prompt: addGenerationPrompt });
    } catch (error) {
      throw new RangeError(`Cannot apply the chat template: ${(error as Error).message}`, { cause: error });
    }
  }
}

/**
 * Breaks whatever could begin a control token, so that none comes about within a text or where two texts meet; the template's own
 * words (as "</think>", by which it takes texts apart) stay whole.
 */
function breakerOf(tokenizer: Tokenizer, source: string): (text: string) => string {
  const control = [...tokenizer.special.keys()];
  if (control.length === 0) return (text) => text;
  const first = new Set(control.map((token) => String.fromCodePoint(token.codePointAt(0)!)));
  const words = new Set([...source.matchAll(/'([^'\n]+)'|"([^"\n]+)"/g)].map(([, single, double]) => single ?? double));
  const own = [...words].filter((word) =>
    word.length > 1 && first.has(String.fromCodePoint(word.codePointAt(0)!)) &&
    !control.some((token) => token.startsWith(word) || word.includes(token))
  );
  const pieces = [...own, ...first].map((text) => RegExp.escape(text)).join("|");
  const begins = new RegExp(pieces, "gu");
  return (text) => text.replaceAll(BREAKER, "\uFFFD").replace(begins, (found) => first.has(found) ? found + BREAKER : found);
}

/** A copy of a value with every text in it changed; the names of fields stay. */
function changed(value: unknown, change: (text: string) => string): unknown {
  if (typeof value === "string") return change(value.toWellFormed());
  if (Array.isArray(value)) return value.map((one) => changed(one, change));
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, changed(one, change)]));
}

/** A model whose chat template writes bos_token first was trained on texts that begin so. */
export function beginsWithBos(template: unknown): boolean {
  return typeof template === "string" && /^\s*\{\{-?\s*bos_token/.test(template);
}
