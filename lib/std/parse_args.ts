/** @std/cli/parse-args where JSR is out of reach: the same result for the options that recallkv uses, over node:util's parseArgs. */
import { parseArgs as parse } from "node:util";

export interface ParseOptions {
  readonly string?: string | readonly string[];
  readonly boolean?: string | readonly string[];
  readonly alias?: Readonly<Record<string, string | readonly string[]>>;
  readonly default?: Readonly<Record<string, unknown>>;
  readonly collect?: string | readonly string[];
  readonly negatable?: string | readonly string[];
  /** Called for every unknown option; returning false leaves it out. */
  readonly unknown?: (arg: string, key?: string, value?: unknown) => unknown;
}

// deno-lint-ignore no-explicit-any -- the std's own result type
export type Args = { _: (string | number)[]; [name: string]: any };

const list = (names: string | readonly string[] | undefined): readonly string[] =>
  names === undefined ? [] : typeof names === "string" ? [names] : names;

export function parseArgs(args: readonly string[], options: ParseOptions = {}): Args {
  const [strings, booleans, collected, negatable] = [options.string, options.boolean, options.collect, options.negatable].map(list);
  const same = new Map<string, readonly string[]>();
  for (const [name, others] of Object.entries(options.alias ?? {})) {
    const all = [name, ...list(others)];
    for (const one of all) same.set(one, all);
  }
  const namesOf = (name: string) => same.get(name) ?? [name];
  const isOne = (names: readonly string[], name: string) => namesOf(name).some((one) => names.includes(one));
  const known = [...new Set([...strings, ...booleans, ...collected, ...same.keys()])];
  const types = Object.fromEntries([
    ...known.map((name) => [name, { type: isOne(booleans, name) ? "boolean" : "string", ...(name.length === 1 ? { short: name } : {}) }]),
    ...negatable.map((name) => [`no-${name}`, { type: "boolean" }]),
  ]);
  const { tokens } = parse({ args: [...args], options: types, strict: false, allowPositionals: true, tokens: true });

  const result: Args = { _: [] };
  const set = (name: string, value: unknown) => {
    for (const one of namesOf(name)) result[one] = isOne(collected, name) ? [...(result[one] ?? []), value] : value;
  };
  for (const token of tokens) {
    if (token.kind === "positional") {
      if (options.unknown?.(token.value) === false) continue;
      result._.push(token.value.trim() !== "" && !Number.isNaN(Number(token.value)) ? Number(token.value) : token.value);
    } else if (token.kind === "option") {
      const { name, rawName } = token;
      const value = token.value?.replace(/^=/, ""); // node leaves it on -m=x
      if (name.startsWith("no-") && negatable.includes(name.slice(3))) set(name.slice(3), false);
      else if (known.includes(name)) set(name, isOne(booleans, name) ? value !== "false" : value ?? "");
      else if (options.unknown?.(rawName, name, value) !== false) set(name, value ?? true);
    }
  }
  for (const [name, value] of Object.entries(options.default ?? {})) {
    for (const one of namesOf(name)) result[one] ??= value;
  }
  for (const name of known) {
    if (isOne(booleans, name)) result[name] ??= false;
    if (isOne(collected, name)) result[name] ??= [];
  }
  return result;
}
