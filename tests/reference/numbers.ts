/**
 * Arithmetic of the reference: f64, and the same formulas as a naive computation would do them in f32, where every product, sum and
 * function value is rounded. The difference of the two is the error that a straightforward implementation would make. Naive sums run
 * forwards or backwards, as either might: one of them alone may be lucky.
 */
import type { Matrix } from "./plain.ts";

const exact = (x: number) => x;
let rounded = exact;
let isBackwards = false;
let factor = exact;
let weighed = exact;

/** "bf16": f32, but the factors of sums of products are rounded to BF16, as matrix units take them; "bf16 weights": only where W x is made. */
export type Precision = "f64" | `${"f32" | "bf16" | "bf16 weights"}${"" | " backwards"}`;

/** Runs `work` in f64 or as a naive computation. */
export function inPrecision<T>(precision: Precision, work: () => T): T {
  rounded = precision === "f64" ? exact : Math.fround;
  isBackwards = precision.endsWith(" backwards");
  weighed = precision.startsWith("bf16") ? toBf16 : exact;
  factor = precision.startsWith("bf16 weights") ? exact : weighed;
  try {
    return work();
  } finally {
    rounded = factor = weighed = exact;
    isBackwards = false;
  }
}

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

/** To the nearest of 8 significant bits, ties to even. */
function toBf16(x: number): number {
  float[0] = x;
  if (!Number.isFinite(float[0])) return float[0];
  bits[0] = (bits[0] + 0x7fff + ((bits[0] >>> 16) & 1)) & 0xffff0000;
  return float[0];
}

/** A result in the precision of the computation. */
export function r(x: number): number {
  return rounded(x);
}

type Vector = Float64Array;

export function dot(a: Vector, b: Vector): number {
  let sum = 0;
  if (rounded === exact) { for (let i = 0; i < a.length; i++) sum += a[i] * b[i]; }
  else if (!isBackwards) { for (let i = 0; i < a.length; i++) sum = Math.fround(sum + Math.fround(factor(a[i]) * factor(b[i]))); }
  else for (let i = a.length; i-- > 0;) sum = Math.fround(sum + Math.fround(factor(a[i]) * factor(b[i])));
  return sum;
}

/** sum += scale * a. */
export function addScaled(sum: Vector, scale: number, a: Vector): void {
  if (rounded === exact) { for (let i = 0; i < a.length; i++) sum[i] += scale * a[i]; }
  else {
    for (let i = 0; i < a.length; i++) sum[i] = Math.fround(sum[i] + Math.fround(factor(scale) * factor(a[i])));
  }
}

export function sum(a: Iterable<number>): number {
  let total = 0;
  for (const x of isBackwards ? [...a].reverse() : a) total = r(total + x);
  return total;
}

export function add(a: Vector, b: Vector): Vector {
  return a.map((x, i) => r(x + b[i]));
}

/** W x. */
export function product(w: Matrix, x: Vector): Vector {
  const y = new Float64Array(w.rows);
  const weights = w.data.map(weighed), meets = x.map(weighed);
  for (let row = 0; row < w.rows; row++) y[row] = dot(weights.subarray(row * w.cols, (row + 1) * w.cols), meets);
  return y;
}

/** x / sqrt(mean(x^2) + eps) * weight. */
export function rmsNorm(x: Vector, weight: Vector, eps: number): Vector {
  const inverse = r(1 / r(Math.sqrt(r(r(dot(x, x) / x.length) + eps))));
  return x.map((value, i) => r(r(value * inverse) * weight[i]));
}

/** log sum e^x; -inf of nothing. */
export function logSumExp(x: Vector): number {
  const largest = x.reduce((a, b) => Math.max(a, b), -Infinity);
  if (largest === -Infinity) return -Infinity;
  return r(largest + r(Math.log(sum(x.map((value) => r(Math.exp(r(value - largest))))))));
}

/** e^x / sum e^x. -inf becomes 0; of nothing but -inf, zeros. */
export function softmax(x: Vector): Vector {
  const largest = x.reduce((a, b) => Math.max(a, b), -Infinity);
  if (largest === -Infinity) return x.map(() => 0);
  const powers = x.map((value) => r(Math.exp(r(value - largest))));
  const total = sum(powers);
  return powers.map((power) => r(power / total));
}

/** x / (1 + e^-x). */
export function silu(x: number): number {
  return r(x / r(1 + r(Math.exp(-x))));
}

/** Turns pairs (i, i + ropeDim / 2) of a head by their angles; channels from ropeDim on stay. */
export function rotate(head: Vector, cos: Vector, sin: Vector): Vector {
  const half = cos.length;
  const turned = head.slice();
  for (let i = 0; i < half; i++) {
    turned[i] = r(r(head[i] * cos[i]) - r(head[i + half] * sin[i]));
    turned[i + half] = r(r(head[i + half] * cos[i]) + r(head[i] * sin[i]));
  }
  return turned;
}
