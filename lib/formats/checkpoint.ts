/** What a model file's header says, whatever the format: where the bytes of each tensor lie. The bytes never pass through JavaScript. */
import { basename } from "node:path";
import { weightTypes } from "../types.ts";
import type { WeightType } from "../types.ts";

/** Where the bytes of one tensor lie. */
export interface TensorSpan {
  readonly name: string;
  readonly type: WeightType;
  /** Row-major: [out, in] of a matrix, the last one contiguous. */
  readonly shape: readonly number[];
  /** Place in `Checkpoint.files`. */
  readonly file: number;
  readonly offset: number;
  readonly bytes: number;
}

export interface Checkpoint {
  readonly files: readonly string[];
  readonly tensors: ReadonlyMap<string, TensorSpan>;
}

/** A model file that is damaged, or holds what is not supported. The message names the file, what was found and what was wanted. */
export class FormatError extends Error {
  override readonly name = "FormatError";

  constructor(readonly file: string, sentence: string) {
    super(`Cannot load "${basename(file)}": ${sentence}`);
  }
}

/** Weights of one block of a quantised type, and its bytes; plain types have blocks of one. */
export const blocks: Readonly<Record<WeightType, { readonly weights: number; readonly bytes: number }>> = {
  f32: { weights: 1, bytes: 4 },
  f16: { weights: 1, bytes: 2 },
  bf16: { weights: 1, bytes: 2 },
  q8_0: { weights: 32, bytes: 34 },
  q4_0: { weights: 32, bytes: 18 },
  q4_k: { weights: 256, bytes: 144 },
  q5_k: { weights: 256, bytes: 176 },
  q6_k: { weights: 256, bytes: 210 },
  q4_1: { weights: 32, bytes: 20 },
  q5_0: { weights: 32, bytes: 22 },
  q5_1: { weights: 32, bytes: 24 },
};

/** Names of the supported types, for sentences. */
export const supportedTypes = weightTypes.map((type) => type.toUpperCase()).join(", ");

/** Bytes of a tensor, or NaN when its rows are not whole blocks or it is too large to count. */
export function bytesOf(type: WeightType, shape: readonly number[]): number {
  const elements = shape.reduce((product, extent) => product * extent, 1);
  const { weights, bytes } = blocks[type];
  if (!Number.isSafeInteger(elements) || (shape.at(-1) ?? 1) % weights !== 0) return NaN;
  return (elements / weights) * bytes;
}
