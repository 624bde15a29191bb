/** What a case of the table is: an op, its arguments made from a seed, and how far a device may be from the reference. */
import type { Op } from "../reference/mod.ts";
import type { Layer, Model, Plain, Rows } from "../reference/plain.ts";
import { type Random, random } from "./random.ts";

export type Arg = Plain | Layer | Model | Rows | Int32Array | number | null;

/** Arguments by name, in the order of the op's prototype. `work` is scratch: nothing is promised about it. */
export type Args = Readonly<Record<string, Arg>>;

/** Integers and copied numbers agree in every bit; computed floats have at most `times` the error of a naive computation. */
export type Tolerance = "exact" | { readonly times: number; readonly naive: Naive };
type Naive = "f32" | "bf16" | "bf16 weights";
export const exact: Tolerance = "exact";
export const naive = (dtype: Naive): { readonly naive: Naive } => ({ naive: dtype });
export const twice = (computation: { readonly naive: Naive }): Tolerance => ({ times: 2, ...computation });

/** Whether an integer that differs from the reference is as good: choices inside a tie band. */
export type Ties = (args: Args, name: string, element: number, got: number) => boolean;

export interface Case {
  readonly op: Op;
  /** Sizes and inputs in words; unique for its op. */
  readonly name: string;
  readonly within: Tolerance;
  /** Fresh arguments, the same at every call. */
  make(): Args;
  readonly ties?: Ties;
}

/** Rows of the table for one op: `make` turns a row's sizes into arguments; what is allowed may depend on the row. */
export function cases<Row extends object>(
  op: Op,
  within: Tolerance | ((row: Row) => Tolerance),
  make: (row: Row, random: Random) => Args,
  rows: readonly Row[],
  ties?: Ties,
): Case[] {
  return rows.map((row) => {
    const name = Object.entries(row).map(([word, value]) => `${word} ${typeof value === "string" ? `"${value}"` : JSON.stringify(value)}`)
      .join(", ");
    let made: Args | null = null; // kept: a case is run on many devices
    const allowed = typeof within === "function" ? within(row) : within;
    return { op, name, within: allowed, make: () => copyOf(made ??= make(row, random(`${op} ${name}`))), ties };
  });
}

/** Arguments whose tensors an op may change without changing those of `args`. */
function copyOf<T extends object>(args: T): T {
  const copied = Object.entries(args).map(([name, arg]) => {
    if (isTensor(arg)) return [name, { ...arg, data: arg.data.slice() }];
    return [name, isRows(arg) ? copyOf(arg) : arg];
  });
  return Object.fromEntries(copied) as T;
}

/** A tensor that an op takes, alone or inside a bundle, under its full name ("rows.keys"). */
export interface NamedTensor {
  readonly name: string;
  readonly tensor: Plain;
}

export function isTensor(arg: unknown): arg is Plain {
  return arg !== null && typeof arg === "object" && "dtype" in arg;
}

export function isRows(arg: unknown): arg is Rows {
  return arg !== null && typeof arg === "object" && "rowEnd" in arg;
}

export function tensorsOf(args: Args): NamedTensor[] {
  return Object.entries(args).flatMap(([name, arg]) => {
    if (isTensor(arg)) return [{ name, tensor: arg }];
    if (!isRows(arg)) return [];
    return Object.entries(arg).filter(([, part]) => isTensor(part)).map(([part, tensor]) => ({ name: `${name}.${part}`, tensor }));
  });
}
