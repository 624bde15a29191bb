/**
 * Number formats of weights: how many bytes a block has, values into bytes (F32, F16, BF16), and random blocks (the others).
 * A quantised block is random in every bit but its float16 scales, which are set so that weights have mean 0 and the
 * deviation asked for: so every pattern of quants, sub-scales and high bits occurs. Layouts: ggml's block_q* structures.
 */
import { normal, randomOf } from "./random.ts";

export type Dtype = "F32" | "F16" | "BF16" | "Q8_0" | "Q4_0" | "Q4_K" | "Q5_K" | "Q6_K" | "Q4_1" | "Q5_0" | "Q5_1";

interface Format {
  /** GGUF's number of the format, and the general.file_type of a file that holds nothing else. */
  id: number;
  fileType: number;
  /** Weights of a block, and its bytes. */
  block: number;
  size: number;
  /** Sets the scales of a random block at `at` for weights of the given deviation; `spin` is a random number of its own. */
  scale?(view: DataView, at: number, deviation: number, spin: number): void;
}

/** Square root of the mean square of one byte read as int8. */
const INT8 = Math.sqrt((256 * 256 - 1) / 12 + 0.25);

// d * sc * q - dmin * m with sc, m uniform in 0..63 and q uniform in 0..top. dmin = d * top / 2 makes the mean 0.
function kScale(top: number): Format["scale"] {
  const six = 63 * 127 / 6, square = top * (2 * top + 1) / 6, half = top / 2;
  const unit = Math.sqrt(six * square + half * half * six - 2 * half * half * 31.5 * 31.5);
  return (view, at, deviation, spin) => {
    const d = spread(deviation / unit, spin);
    view.setUint16(at, toF16(d), true);
    view.setUint16(at + 2, toF16(d * half), true);
  };
}

// d * (q - 8) or d * (q - 16), whose mean square is given and whose mean is -1/2: a scale of either sign takes it out.
function centredScale(square: number): Format["scale"] {
  return (view, at, deviation, spin) => {
    const d = spread(deviation / Math.sqrt(square), spin);
    view.setUint16(at, toF16(spin & 256 ? d : -d), true);
  };
}

// d * q + m with q uniform in 0..top: m = -d * top / 2 makes the mean 0.
function minimumScale(top: number): Format["scale"] {
  return (view, at, deviation, spin) => {
    const d = spread(deviation / Math.sqrt((top * (top + 2)) / 12), spin);
    view.setUint16(at, toF16(d), true);
    view.setUint16(at + 2, toF16(-d * top / 2), true);
  };
}

export const formats: Record<Dtype, Format> = {
  F32: { id: 0, fileType: 0, block: 1, size: 4 },
  F16: { id: 1, fileType: 1, block: 1, size: 2 },
  BF16: { id: 30, fileType: 32, block: 1, size: 2 },
  Q8_0: {
    id: 8,
    fileType: 7,
    block: 32,
    size: 34,
    scale: (view, at, deviation, spin) => view.setUint16(at, toF16(spread(deviation / INT8, spin)), true),
  },
  Q4_0: { id: 2, fileType: 2, block: 32, size: 18, scale: centredScale(21.5) },
  Q4_K: { id: 12, fileType: 14, block: 256, size: 144, scale: kScale(15) },
  Q5_K: { id: 13, fileType: 16, block: 256, size: 176, scale: kScale(31) },
  // d * sc * (q - 32) with sc any int8. The scale is so small that it is a subnormal float16.
  Q6_K: {
    id: 14,
    fileType: 18,
    block: 256,
    size: 210,
    scale: (view, at, deviation, spin) => view.setUint16(at + 208, toF16(spread(deviation / (INT8 * Math.sqrt(341.5)), spin)), true),
  },
  Q4_1: { id: 3, fileType: 3, block: 32, size: 20, scale: minimumScale(15) },
  Q5_0: { id: 6, fileType: 8, block: 32, size: 22, scale: centredScale(85.5) },
  Q5_1: { id: 7, fileType: 9, block: 32, size: 24, scale: minimumScale(31) },
};

/** Scales differ from block to block by a quarter either way. */
const spread = (d: number, spin: number) => d * (0.75 + (spin & 255) / 512);

const float = new Float32Array(1), bits = new Uint32Array(float.buffer);

/** Nearest even, subnormals included; the value must be below 65,504. */
export function toF16(value: number): number {
  float[0] = value;
  const sign = bits[0] >>> 16 & 0x8000, magnitude = bits[0] & 0x7fffffff;
  if (magnitude >= 0x38800000) return sign | (magnitude - 0x38000000 + 0xfff + (magnitude >>> 13 & 1)) >>> 13;
  const steps = Math.abs(float[0]) * 2 ** 24, low = Math.floor(steps), rest = steps - low;
  return sign | low + (rest > 0.5 || rest === 0.5 && low & 1 ? 1 : 0);
}

/** Nearest even. */
export function toBf16(value: number): number {
  float[0] = value;
  return (bits[0] + 0x7fff + (bits[0] >>> 16 & 1)) >>> 16;
}

/** Values as bytes of a float format, little-endian. */
export function encode(values: Float32Array, dtype: Dtype): Uint8Array<ArrayBuffer> {
  const { size } = formats[dtype], bytes = new Uint8Array(values.length * size), view = new DataView(bytes.buffer);
  for (let i = 0; i < values.length; i++) {
    if (size === 4) view.setFloat32(4 * i, values[i], true);
    else view.setUint16(2 * i, dtype === "F16" ? toF16(values[i]) : toBf16(values[i]), true);
  }
  return bytes;
}

/** n weights of a name in any format: those of normal() in a float format, random blocks in the others. */
export function weights(name: string, n: number, deviation: number, dtype: Dtype): Uint8Array<ArrayBuffer> {
  const { block, size, scale } = formats[dtype];
  if (!scale) return encode(normal(name, n, deviation), dtype);
  const next = randomOf(`${name}:${dtype}`), bytes = new Uint8Array(n / block * size), view = new DataView(bytes.buffer);
  for (let i = 0; i < bytes.length; i += 2) view.setUint16(i, next() >>> 8, true);
  for (let at = 0; at < bytes.length; at += size) scale(view, at, deviation, next());
  return bytes;
}
