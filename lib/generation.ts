/** What asking for text gives back: pieces to iterate, and a promise of the whole. */
import type { OpTimes } from "./device.ts";
import type { AttendedRows } from "./metrics/attended.ts";
import type { LikelyToken } from "./sampling.ts";

/** Why a text ended: the model or a `stop` said so, a limit was reached, or the caller had enough. */
export type FinishReason = "stop" | "length" | "abort";

/** What an answer took. */
export interface GenerateStats {
  /** Tokens of the prompt. */
  readonly promptTokens: number;
  /** Of them, those that the session did not hold already. */
  readonly readTokens: number;
  /** Tokens of the answer, an end token included. */
  readonly generatedTokens: number;
  /** From when its prompt began to be read to the first token. */
  readonly secondsToFirstToken: number;
  /** Generated tokens per second, the first not counted. */
  readonly tokensPerSecond: number;
  /** Rows of the index, per head; 0 for policies without one. */
  readonly budget: number;
  /** Rows read per head and step: means over steps and all layers, exempt ones included. */
  readonly attendedRows: AttendedRows;
  /** Bytes of KV rows and of what the policy's selection reads, per step. */
  readonly bytesPerStep: number;
  /** The same if every row were read. */
  readonly fullBytesPerStep: number;
  /** Rows held at the end, per head: means over layers. Fewer than tokens where the policy gave some back. */
  readonly heldRows: number;
  /** Clusters of a KV head at the end: the mean over layers that have some, 0 for policies without. */
  readonly clusters: number;
  /** Parts of the device's time from the end of the prompt on; on a GPU only with `stats: "ops"`. Answers made at once share it. */
  readonly share?: {
    /** Choosing rows. */
    readonly select: number;
    /** Reading them. */
    readonly attend: number;
  };
  /** Time of each op over the same span, where `stats: "ops"` asked for it. */
  readonly ops?: OpTimes;
}

/** One token of an answer, where `logprobs` asked for them. */
export interface TokenLogprob extends LikelyToken {
  /** The likeliest tokens in its place, best first. */
  readonly likeliest: readonly LikelyToken[];
}

/** An answer. */
export interface GenerateResult {
  /** The text. */
  readonly text: string;
  /** All that was generated, an end token included. */
  readonly tokens: readonly number[];
  /** Why it ended. */
  readonly finishReason: FinishReason;
  /** What it took. */
  readonly stats: GenerateStats;
  /** For each token, where `logprobs` asked for them. */
  readonly logprobs?: readonly TokenLogprob[];
}

/**
 * Pieces of text to iterate, and a promise of the result: iterate it, then await it for `finishReason` and `stats`, or only await it.
 * Nothing runs before one of the two; leaving the loop ends the work.
 */
export class Generation<Piece = string, Result = GenerateResult> implements AsyncIterable<Piece>, PromiseLike<Result> {
  readonly #start: (finish: (result: Result) => void) => AsyncGenerator<Piece, void, undefined>;
  #pieces: AsyncGenerator<Piece, void, undefined> | undefined;
  #result: { readonly value: Result } | undefined;
  #drained: Promise<Result> | undefined;

  /** `start` begins the work; it tells the result before its pieces end. */
  constructor(start: (finish: (result: Result) => void) => AsyncGenerator<Piece, void, undefined>) {
    this.#start = start;
  }

  /** Pieces as they come. One iterator at a time: a second one is a TypeError. */
  [Symbol.asyncIterator](): AsyncGenerator<Piece, void, undefined> {
    if (this.#pieces) {
      throw new TypeError("Cannot iterate a generation twice: its pieces were taken already, want one loop (await it for the whole text)");
    }
    this.#pieces = this.#start((value) => this.#result = { value });
    return this.#pieces;
  }

  /** Waits for the result, and begins the work if nobody iterates. */
  then<A = Result, B = never>(
    fulfilled?: ((result: Result) => A | PromiseLike<A>) | null,
    rejected?: ((reason: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    this.#drained ??= this.#drain();
    return this.#drained.then(fulfilled, rejected);
  }

  async #drain(): Promise<Result> {
    if (!this.#pieces) { for await (const _ of this); }
    if (!this.#result) {
      throw new TypeError("Cannot await a generation while its pieces are being taken: want the loop ended first");
    }
    return this.#result.value;
  }
}

/** Text on its way to the caller: what might be the beginning of a stop text waits until it is known not to be. */
export class StopText {
  #held = "";
  /** Whether a stop text was met: it and what follows it are left out. */
  isStopped = false;

  constructor(private readonly stops: readonly string[]) {}

  /** What may be shown now. */
  push(piece: string): string {
    if (this.isStopped) return "";
    const text = this.#held + piece;
    const met = this.stops.map((stop) => text.indexOf(stop)).filter((place) => place >= 0);
    this.isStopped = met.length > 0;
    const end = this.isStopped ? Math.min(...met) : text.length - this.#waiting(text);
    this.#held = this.isStopped ? "" : text.slice(end);
    return text.slice(0, end);
  }

  /** What waited; nothing more comes. */
  end(): string {
    const rest = this.#held;
    this.#held = "";
    return rest;
  }

  /** Length of the longest end of `text` with which a stop text begins. */
  #waiting(text: string): number {
    let longest = 0;
    for (const stop of this.stops) {
      for (let length = Math.min(stop.length - 1, text.length); length > longest; length--) {
        if (text.endsWith(stop.slice(0, length))) longest = length;
      }
    }
    return longest;
  }
}
