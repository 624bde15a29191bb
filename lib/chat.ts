/** A conversation: the model's template, what was said, and a session that holds it. What the session holds is not read again. */
import { type AnswerOptions, answerOptions, answers, checkAnswer, samplingOf } from "./answers.ts";
import { count } from "./format.ts";
import { type GenerateResult, Generation } from "./generation.ts";
import type { Mark } from "./kv/mark.ts";
import type { LoadedModel } from "./model.ts";
import { knownOptions } from "./options.ts";
import { type PrefillOptions, Session, type SessionOptions } from "./session.ts";
import type { ChatMessage, ChatTemplate } from "./tokenizer/chat.ts";

/** What a conversation begins with, and the session that holds it. */
export interface ChatOptions extends Omit<SessionOptions, "slots"> {
  /** What the conversation begins with: the system's message. */
  system?: string;
  /** The same as messages, or what was said before. */
  messages?: readonly ChatMessage[];
  /** What the chat template reads beside messages: tools, documents, enable_thinking. */
  variables?: Readonly<Record<string, unknown>>;
}

/** How to answer. */
export interface SendOptions extends AnswerOptions {
  /** How the question is read: "dense" (default) or "sparse", as `Session.prefill`. */
  query?: PrefillOptions["query"];
}

const chatOptions = ["system", "messages", "variables", "kv", "capacity", "kvDtype", "chunk", "eager", "onWarning"];
const sendOptions = [...answerOptions, "query"];

/** A place in a conversation. */
export interface ChatMark {
  /** What was said, oldest first. */
  readonly messages: readonly ChatMessage[];
  /** Of the session; void once the session went back before it. */
  readonly place: Mark;
}

/** A conversation. Make one with `LoadedModel.chat`. */
export class Chat {
  /**
   * What was said, oldest first. It may be replaced or edited between two answers: the next one reads again what the session does not
   * hold any more.
   */
  messages: ChatMessage[];
  readonly #model: LoadedModel;
  readonly #template: ChatTemplate;
  readonly #session: Session;
  readonly #variables: Readonly<Record<string, unknown>> | undefined;
  /** Before the last answer: where to go back to when its tokens are not those of its text. */
  #beforeAnswer: Mark | undefined;

  /** Made by `LoadedModel.chat`. */
  constructor(model: LoadedModel, options: ChatOptions = {}, restored?: Session) {
    knownOptions("chat", options, chatOptions);
    const { system, messages = [], variables, ...rest } = options;
    if (!model.checkpoint.chat) throw new RangeError("Cannot chat: the model has no chat template, want generate with a text or token ids");
    this.#model = model;
    this.#template = model.checkpoint.chat;
    this.#variables = variables;
    this.messages = [...(system === undefined ? [] : [{ role: "system", content: system }]), ...messages];
    this.#session = restored ?? new Session(model, rest);
  }

  /** A conversation whose session came back from a file. */
  static of(model: LoadedModel, session: Session, variables?: Readonly<Record<string, unknown>>): Chat {
    const messages = Array.isArray(session.note) ? session.note as ChatMessage[] : [];
    return new Chat(model, { messages, variables }, session);
  }

  /** The session: its capacity, policy, memory and counters. */
  get session(): Session {
    return this.#session;
  }

  /** Reads what was said so far, if the session does not hold it yet. Errors: RangeError past the capacity. */
  async prefill(options: Omit<PrefillOptions, "slot"> = {}): Promise<void> {
    if (this.messages.length === 0) return;
    await this.#session.prefill(this.#fitting(this.messages, false), { ...options, reuse: true });
  }

  /**
   * Says something and gives the answer, as `generate` does: pieces to iterate and a promise of the result. What was said and the answer
   * are in `messages` when it has ended; of an answer that was cut short, what there is of it; neither where nothing was answered yet.
   */
  send(said: string | ChatMessage | readonly ChatMessage[], options: SendOptions = {}): Generation {
    knownOptions("send", options, sendOptions);
    checkAnswer("send", options, this.#model.shape.vocab);
    const more: readonly ChatMessage[] = typeof said === "string" ? [{ role: "user", content: said }] : [said].flat();
    if (more.length === 0 || more.some((message) => typeof message?.content !== "string")) {
      throw new TypeError("Cannot send: a message has no content, want a text, or messages with role and content");
    }
    return new Generation<string, GenerateResult>((finish) => this.#answer([...this.messages, ...more], options, finish));
  }

  /** A place to come back to with `rewind`. */
  mark(): ChatMark {
    return { messages: [...this.messages], place: this.#session.mark() };
  }

  /** Comes back to a mark: what was said after it is forgotten. */
  rewind(mark: ChatMark): void {
    this.messages = [...mark.messages];
    try {
      this.#session.rewind(mark.place);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      this.#session.reset(); // the place is void: the next answer reads again what is missing
    }
    this.#forget();
  }

  /** Writes the conversation and all that the session holds to a file; `LoadedModel.restoreChat` brings it back. */
  save(path: string): Promise<void> {
    return this.#session.save(path, this.messages);
  }

  /** Gives everything back. Nothing of it may be used afterwards. */
  [Symbol.dispose](): void {
    this.#session[Symbol.dispose]();
  }

  async *#answer(
    messages: ChatMessage[],
    options: SendOptions,
    finish: (result: GenerateResult) => void,
  ): AsyncGenerator<string, void, undefined> {
    const session = this.#session;
    const tokens = this.#fitting(messages, true);
    const onRead = () => {
      this.#forget();
      this.#beforeAnswer = session.mark();
    };
    const sampling = { seed: crypto.getRandomValues(new Uint32Array(1))[0], ...this.#model.checkpoint.sampling, ...samplingOf(options) };
    let result: GenerateResult | undefined;
    try {
      const job = { index: 0, tokens, sampling };
      for await (const { text } of answers(session, [job], { ...options, onRead }, (_, made) => result = made)) yield text;
    } finally {
      if (result) {
        if (result.tokens.length > 0) this.messages = [...messages, { role: "assistant", content: result.text }];
        finish(result);
      }
    }
  }

  #forget(): void {
    if (this.#beforeAnswer) this.#session.forget(this.#beforeAnswer);
    this.#beforeAnswer = undefined;
  }

  /** A conversation as tokens. Errors: RangeError past the capacity. */
  #fitting(messages: readonly ChatMessage[], addGenerationPrompt: boolean): number[] {
    const { capacity } = this.#session;
    const { length } = messages;
    const all = this.#template.encode(this.#model.tokenizer, messages, { addGenerationPrompt, variables: this.#variables });
    if (all.length <= capacity) return all;
    throw new RangeError(
      `Cannot send: the conversation has ${count(all.length)} tokens in ${count(length)} messages but the capacity is ${
        count(capacity)
      } (pass a larger capacity, or drop messages)`,
    );
  }
}
