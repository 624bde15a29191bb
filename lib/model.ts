/** A loaded model: weights on a device, tokenizer, template, and the sessions made of it. */
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { Chat, type ChatOptions } from "./chat.ts";
import type { Weights } from "./decoder.ts";
import { type Arena, type Device, open } from "./device.ts";
import { RecallError } from "./errors.ts";
import { knownOptions, oneOf } from "./options.ts";
import { readModel } from "./models/load.ts";
import type { LoadedCheckpoint, ModelShape } from "./models/model.ts";
import { type RestoreOptions, Session, type SessionOptions } from "./session.ts";
import type { Tokenizer } from "./tokenizer/tokenizer.ts";
import type { OnProgress, OnWarning } from "./types.ts";
import { loadWeights, weightBytes } from "./weights.ts";

/** Where a model runs, and who is told how far it is. */
export interface LoadOptions {
  /** "auto" takes CUDA where it can be had, else the CPU; an open `Device` is used as it is and stays open. */
  device?: "auto" | "cpu" | "cuda" | Device;
  /** Width of the CPU pool; all cores unless said. */
  threads?: number;
  /** Ends the work early. */
  signal?: AbortSignal;
  /** Is told how far it is. */
  onProgress?: OnProgress;
  /** Gets warnings, a sentence each; stderr unless said. */
  onWarning?: OnWarning;
}

/** A model on a device. Make one with `load`. */
export class LoadedModel {
  /** Its sizes and numbers. */
  readonly shape: ModelShape;
  /** Text to tokens and back. */
  readonly tokenizer: Tokenizer;
  #closed = false;

  /** @internal */
  constructor(
    readonly path: string,
    readonly device: Device,
    /** @internal */
    readonly checkpoint: LoadedCheckpoint,
    /** @internal */
    readonly weights: Weights,
    private readonly arena: Arena,
    private readonly ownsDevice: boolean,
    private readonly onWarning: OnWarning,
  ) {
    this.shape = checkpoint.shape;
    this.tokenizer = checkpoint.tokenizer;
  }

  /** KV rows and step state for one or more sequences. */
  session(options: SessionOptions = {}): Session {
    return new Session(this, { onWarning: this.onWarning, ...options });
  }

  /**
   * A session that `save` wrote, with the policy it had: reading on is as if nothing had been in between. Errors: FormatError for a file that
   * is damaged, or was saved with other weights, another tokenizer, RoPE or policy.
   */
  restore(path: string, options: RestoreOptions = {}): Promise<Session> {
    return Session.restore(this, path, { onWarning: this.onWarning, ...options });
  }

  /** A conversation through the model's chat template. Errors: RangeError where the model has none. */
  chat(options: ChatOptions = {}): Chat {
    return new Chat(this, { onWarning: this.onWarning, ...options });
  }

  /** A conversation that `Chat.save` wrote. Errors as `restore`. */
  async restoreChat(path: string, options: RestoreOptions & Pick<ChatOptions, "variables"> = {}): Promise<Chat> {
    const { variables, ...rest } = options;
    return Chat.of(this, await this.restore(path, rest), variables);
  }

  /** Gives everything back. Nothing of it may be used afterwards. */
  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#closed = true;
    this.arena[Symbol.dispose]();
    if (this.ownsDevice) this.device[Symbol.dispose]();
  }
}

/**
 * Loads a model: a directory in Hugging Face's layout, or a GGUF file. The model that ships with recallkv unless said.
 * Errors: FormatError for files that are damaged or not supported (what was found, what is supported); RecallError `RKV_MEMORY`.
 */
export async function load(path: string = shippedModel(), options: LoadOptions = {}): Promise<LoadedModel> {
  knownOptions("load", options, ["device", "threads", "signal", "onProgress", "onWarning"]);
  const { device: wanted = "auto", threads, signal, onProgress, onWarning = warn } = options;
  if (typeof wanted === "string") oneOf("load", "device", wanted, ["auto", "cpu", "cuda"]);
  const checkpoint = await readModel(path);
  signal?.throwIfAborted();
  const device = typeof wanted === "string" ? await open(wanted, { threads }) : wanted;
  const ownsDevice = typeof wanted === "string";
  let arena: Arena | undefined;
  try {
    arena = device.arena(2 * weightBytes(checkpoint) + (1 << 28));
    const weights = await loadWeights(device, arena, checkpoint, { signal, onProgress });
    return new LoadedModel(path, device, checkpoint, weights, arena, ownsDevice, onWarning);
  } catch (error) {
    arena?.[Symbol.dispose]();
    if (ownsDevice) device[Symbol.dispose]();
    throw error;
  }
}

/** Where the model that ships with recallkv lies: in its package, or in a checkout. Errors: RecallError `RKV_FILE` where neither is there. */
export function shippedModel(): string {
  const file = "model-q8_0.gguf";
  const places = [fileURLToPath(new URL(`../models/mini/${file}`, import.meta.url))];
  try {
    places.unshift(fileURLToPath(import.meta.resolve(`@recallkv/mini/${file}`)));
  } catch {
    // not installed: a checkout has its own
  }
  const found = places.find((place) => existsSync(place));
  if (found !== undefined) return found;
  throw new RecallError(
    "RKV_FILE",
    "load",
    "Cannot load the model that ships with recallkv: its package is not installed, want npm install @recallkv/mini (or the path of a model)",
  );
}

let shared: Promise<LoadedModel> | undefined;

/** The shipped model, loaded once per process. */
export function defaultModel(): Promise<LoadedModel> {
  shared ??= load().catch((error) => {
    shared = undefined;
    throw error;
  });
  return shared;
}

function warn(sentence: string): void {
  console.warn(`recallkv: ${sentence}`);
}
