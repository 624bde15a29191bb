/** Holds what a device made of a case against the reference. */
import { reference } from "../reference/mod.ts";
import { inPrecision, type Precision } from "../reference/numbers.ts";
import type { Plain } from "../reference/plain.ts";
import { type Args, type Case, type NamedTensor, tensorsOf } from "./case.ts";
import { decode, encode, storingError } from "./codec.ts";

/** Bytes of every tensor of a call after it ran, by name. */
export type Outcome = ReadonlyMap<string, Uint8Array<ArrayBuffer>>;

/** Tensors that are promised something: all but scratch. */
export function judged(args: Args): NamedTensor[] {
  return tensorsOf(args).filter(({ name }) => name !== "work");
}

/** What the reference makes of a case, exactly or as a naive computation would; tensors by name. */
function expected(one: Case, precision: Precision): Map<string, Plain> {
  const args = one.make();
  const run = reference[one.op] as (...args: unknown[]) => void;
  inPrecision(precision, () => run(...Object.values(args)));
  return new Map(judged(args).map(({ name, tensor }) => [name, tensor]));
}

interface Expectation {
  readonly before: Args;
  readonly exact: Map<string, Plain>;
  /** Two of them, so that luck of one does not set the standard. */
  readonly naive: readonly Map<string, Plain>[];
}

const expectations = new Map<Case, Expectation>(); // one case is judged on many devices

function expectation(one: Case): Expectation {
  const known = expectations.get(one);
  if (known) return known;
  const made = {
    before: one.make(),
    exact: expected(one, "f64"),
    naive: one.within === "exact" ? [] : [expected(one, one.within.naive), expected(one, `${one.within.naive} backwards`)],
  };
  expectations.set(one, made);
  return made;
}

/** What is wrong with an outcome: one sentence for each tensor that is; nothing when all is well. */
export function faults(one: Case, outcome: Outcome): string[] {
  const { before, exact, naive } = expectation(one);
  return judged(before).flatMap(({ name, tensor }) => {
    const fault = tensorFault(one, before, { name, tensor }, exact.get(name)!, naive.map((each) => each.get(name)!), outcome.get(name)!);
    return fault === null ? [] : [`${name}${fault}`];
  });
}

function tensorFault(
  one: Case,
  args: Args,
  { name, tensor: before }: NamedTensor,
  exact: Plain,
  naive: readonly Plain[],
  bytes: Uint8Array<ArrayBuffer>,
): string | null {
  const width = before.shape[before.shape.length - 1];
  const got = decode(before.dtype, bytes, width);
  const change = untouchedFault(before, exact, bytes);
  if (change !== null) return change;
  const isInteger = before.dtype === "i32" || before.dtype === "u32";
  if (isInteger || one.within === "exact") {
    const wrong = got.findIndex((x, i) => !Object.is(x, exact.data[i]) && !(isInteger && one.ties?.(args, name, i, x)));
    return wrong < 0 ? null : `${placeOf(before, wrong)} is ${got[wrong]}, want ${exact.data[wrong]}`;
  }
  const naiveErrors = naive.map((each) => worstRow(decode(each.dtype, encode(each), width), exact, width).error);
  const allowed = one.within.times * Math.max(storingError[before.dtype], ...naiveErrors);
  const { error, element } = worstRow(got, exact, width);
  if (error <= allowed) return null;
  return `${placeOf(before, element)} is ${got[element]}, want ${exact.data[element]}: off by ${
    error.toExponential(1)
  } of its row, at most ${allowed.toExponential(1)} allowed`;
}

/** What the reference left as it was must keep its bits. (A q8 row is taken as a whole.) */
function untouchedFault(before: Plain, exact: Plain, bytes: Uint8Array<ArrayBuffer>): string | null {
  const old = encode(before);
  const step = before.dtype === "q8" ? before.shape[before.shape.length - 1] : 1;
  const size = (old.length / before.data.length) * step;
  for (let element = 0; element < before.data.length; element += step) {
    let isTouched = false;
    for (let i = element; i < element + step; i++) isTouched ||= !Object.is(before.data[i], exact.data[i]);
    if (isTouched) continue;
    const offset = (element / step) * size;
    for (let i = offset; i < offset + size; i++) {
      if (bytes[i] !== old[i]) return `${placeOf(before, element)} was written, want it left alone`;
    }
  }
  return null;
}

/** The largest error relative to the largest number of its row (its last dimension); NaN and infinities must be the same. */
function worstRow(got: Float64Array, exact: Plain, width: number): { error: number; element: number } {
  let worst = { error: 0, element: 0 };
  for (let row = 0; row < got.length; row += width) {
    let scale = 0;
    for (let i = row; i < row + width; i++) if (Number.isFinite(exact.data[i])) scale = Math.max(scale, Math.abs(exact.data[i]));
    for (let i = row; i < row + width; i++) {
      if (Object.is(got[i], exact.data[i])) continue;
      const difference = Math.abs(got[i] - exact.data[i]);
      const error = Number.isNaN(difference) ? Infinity : difference / (scale || 1);
      if (error > worst.error) worst = { error, element: i };
    }
  }
  return worst;
}

/** "[0, 2, 7]" of an element. */
function placeOf({ shape }: Plain, element: number): string {
  const place = shape.map((_, d) => Math.floor(element / shape.slice(d + 1).reduce((a, b) => a * b, 1)) % shape[d]);
  return `[${place.join(", ")}]`;
}
