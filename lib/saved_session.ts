/** What a saved session says of itself, and how it is held against the model and the policy that it comes back to. */
import { createHash } from "node:crypto";
import { open } from "node:fs/promises";
import { FormatError } from "./formats/checkpoint.ts";
import type { SlotState } from "./kv/slot.ts";
import type { LoadedModel } from "./model.ts";
import type { Policy } from "./policies/policy.ts";
import type { KvDType } from "./types.ts";

export interface SessionFacts {
  /** What must be the same: SHA-256 each. */
  readonly identity: Identity;
  readonly slots: number;
  readonly capacity: number;
  readonly chunk: number;
  readonly kvDtype: KvDType;
  readonly held: SlotState[];
  readonly steps: number[];
  /** What the caller wanted kept beside it. */
  readonly note?: unknown;
}

interface Identity {
  readonly weights: string;
  readonly tokenizer: string;
  readonly rope: string;
  readonly policy: string;
}

const sentences: Record<keyof Identity, string> = {
  weights: "it was saved with other weights",
  tokenizer: "it was saved with another tokenizer",
  rope: "it was saved with another RoPE scaling",
  policy: "it was saved with another policy, or other options of it",
};

export async function identityOf(model: LoadedModel, policy: Policy): Promise<Identity> {
  const { tokenizer, shape } = model;
  const { name, version, sink, budget, block, options } = policy;
  const sample = tokenizer.encode("The quick brown fox, 1234 \n\t über 漢字 🙂 don't <|x|>");
  return {
    weights: await fingerprint(model),
    tokenizer: digest([[...tokenizer.special], sample]),
    rope: digest([shape.rope.dim, [...shape.rope.inverseFrequencies], shape.rope.attentionFactor]),
    policy: digest([name, version, sink, budget, block, options]),
  };
}

/** Refuses a file whose facts do not fit. */
export function checkFacts(path: string, facts: SessionFacts, identity: Identity, vocab: number, layers: number): void {
  for (const [part, sentence] of Object.entries(sentences) as [keyof Identity, string][]) {
    if (facts.identity[part] !== identity[part]) {
      throw new FormatError(path, `${sentence} (found ${part} ${short(facts.identity[part])}, want ${short(identity[part])})`);
    }
  }
  if (facts.held.length !== facts.slots) throw new FormatError(path, `it holds ${facts.held.length} slots, want ${facts.slots}`);
  for (const { tokens, layers: held } of facts.held) {
    if (tokens.length > facts.capacity || !tokens.every((token) => Number.isInteger(token) && token >= 0 && token < vocab)) {
      throw new FormatError(path, `a slot holds tokens that are none of this model's, or more than ${facts.capacity}`);
    }
    if (held.length !== layers || !held.every(({ end }) => Number.isInteger(end) && end >= 0 && end <= facts.capacity)) {
      throw new FormatError(path, `a slot holds rows of ${held.length} layers, want ${layers} of at most ${facts.capacity} rows`);
    }
  }
}

const short = (hash: string) => hash.slice(0, 12);

function digest(value: unknown): string {
  return createHash("sha256").update(JSON.stringify(value)).digest("hex");
}

const fingerprints = new WeakMap<LoadedModel, Promise<string>>();

/** SHA-256 of the sizes of the weights' files, their first MiB, and 256 pages spread over the rest: whole files would take seconds. */
function fingerprint(model: LoadedModel): Promise<string> {
  let known = fingerprints.get(model);
  if (!known) fingerprints.set(model, known = sampled(model.checkpoint.files));
  return known;
}

async function sampled(paths: readonly string[]): Promise<string> {
  const hash = createHash("sha256");
  for (const path of paths) {
    const file = await open(path);
    try {
      const { size } = await file.stat();
      hash.update(String(size));
      const take = async (at: number, bytes: number) => {
        const buffer = new Uint8Array(bytes);
        const { bytesRead } = await file.read(buffer, 0, bytes, at);
        hash.update(buffer.subarray(0, bytesRead));
      };
      await take(0, 1 << 20);
      for (let i = 0; i < 256; i++) await take(Math.floor(i * size / 256), 4096);
    } finally {
      await file.close();
    }
  }
  return hash.digest("hex");
}
