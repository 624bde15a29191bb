/** Weights as model files hold them. A new type is one line of `weightTypes`. */
import { type Matrix, range } from "../reference/plain.ts";
import { decode, encode } from "./codec.ts";
import type { Random } from "./random.ts";

/** A matrix together with the bytes that a file has for it. */
export interface FileWeight extends Matrix {
  readonly type: WeightType;
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Heads whose RoPE pairs are adjacent in `bytes`; `data` has them in halves. */
  readonly rotated: number;
}

interface FileType {
  /** Rows of a file, from numbers; what they stand for comes back by `read`. */
  write(numbers: Float64Array): Uint8Array<ArrayBuffer>;
  read(bytes: Uint8Array<ArrayBuffer>): Float64Array;
}

const floats = (dtype: "f32" | "f16" | "bf16"): FileType => ({
  write: (data) => encode({ dtype, shape: [data.length], data }),
  read: (bytes) => decode(dtype, bytes, 1),
});

export const weightTypes = {
  f32: floats("f32"),
  f16: floats("f16"),
  bf16: floats("bf16"),
} as const satisfies Record<string, FileType>;
export type WeightType = keyof typeof weightTypes;

/** A random matrix whose products keep the size of their input. `rotated`: heads whose rows the file has in adjacent pairs. */
export function matrix(type: WeightType, rows: number, cols: number, random: Random, rotated = 0): FileWeight {
  const numbers = Float64Array.from({ length: rows * cols }, () => random.normal() / Math.sqrt(cols));
  const bytes = weightTypes[type].write(numbers);
  const inFile = weightTypes[type].read(bytes);
  if (rotated === 0) return { rows, cols, data: inFile, type, bytes, rotated };
  const headDim = rows / rotated;
  const data = new Float64Array(inFile.length);
  for (const row of range(rows)) {
    const [head, channel] = [Math.floor(row / headDim), row % headDim];
    const half = head * headDim + (channel % 2) * (headDim / 2) + Math.floor(channel / 2);
    data.set(inFile.subarray(row * cols, (row + 1) * cols), half * cols);
  }
  return { rows, cols, data, type, bytes, rotated };
}

/** A random f32 vector around `mean`. */
export function vector(length: number, random: Random, mean: number): FileWeight {
  const numbers = Float64Array.from({ length }, () => mean + 0.25 * random.normal());
  const bytes = weightTypes.f32.write(numbers);
  return { rows: 1, cols: length, data: weightTypes.f32.read(bytes), type: "f32", bytes, rotated: 0 };
}
