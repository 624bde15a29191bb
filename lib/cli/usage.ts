/** Reading options: what is unknown or malformed is named, with what was wanted. */
import { readFile } from "node:fs/promises";
import { parseArgs } from "@std/cli/parse-args";
import { nearest } from "../options.ts";

/** The command line was used wrongly: exit code 2. */
export class Usage extends Error {}

/** Options of a command as strings and switches, and what stands beside them. */
export function options(
  args: readonly string[],
  { string, boolean }: { string: readonly string[]; boolean: readonly string[] },
): { values: Record<string, string | undefined>; switches: Record<string, boolean>; rest: string[] } {
  const known = [...string, ...boolean].map((name) => `--${name}`);
  const parsed = parseArgs([...args], {
    string: [...string],
    boolean: [...boolean],
    unknown: (name) => {
      if (!name.startsWith("-") || name === "-") return true;
      const near = nearest(name.replace(/=.*/, ""), known);
      throw new Usage(`unknown option ${name}, want ${near ?? `one of ${known.join(", ")}`}`);
    },
  }) as Record<string, unknown> & { _: (string | number)[] };
  const empty = string.find((name) => parsed[name] === "");
  if (empty !== undefined) throw new Usage(`--${empty} wants a value`);
  const values = Object.fromEntries(string.map((name) => [name, parsed[name] as string | undefined]));
  const switches = Object.fromEntries(boolean.map((name) => [name, parsed[name] === true]));
  return { values, switches, rest: parsed._.map(String) };
}

/** The text of a file. */
export async function textOf(path: string): Promise<string> {
  return await readFile(path, "utf8").catch((error) => {
    throw new Error(`Cannot read "${path}": ${error.code === "ENOENT" ? "there is no such file" : error.message}`);
  });
}

/** A whole number of an option. */
export function whole(name: string, value: string | undefined, least: number): number | undefined {
  if (value === undefined) return undefined;
  const number = Number(value);
  if (value.trim() === "" || !Number.isInteger(number) || number < least) {
    throw new Usage(`--${name} is "${value}", want a whole number from ${least}`);
  }
  return number;
}

/** A number of an option. */
export function numeric(name: string, value: string | undefined, least: number, most: number): number | undefined {
  if (value === undefined) return undefined;
  const number = Number(value);
  if (value.trim() === "" || !(number >= least && number <= most)) {
    throw new Usage(`--${name} is "${value}", want a number from ${least} to ${most}`);
  }
  return number;
}

/** One of a few words. */
export function oneOf<T extends string>(name: string, value: string | undefined, words: readonly T[]): T | undefined {
  if (value === undefined || words.includes(value as T)) return value as T | undefined;
  throw new Usage(`--${name} is "${value}", want one of ${words.join(", ")}`);
}
