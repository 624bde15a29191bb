/** Checking what callers say: what is unknown, of the wrong kind or out of range is named, with what was wanted. */

/** Refuses options that nobody knows, with the nearest one that somebody does. Errors: TypeError. */
export function knownOptions(action: string, options: object, known: readonly string[]): void {
  if (typeof options !== "object" || options === null) {
    throw new TypeError(`Cannot ${action}: options are ${String(options)}, want an object`);
  }
  for (const name of Object.keys(options)) {
    if (known.includes(name)) continue;
    const near = nearest(name, known);
    throw new TypeError(`Cannot ${action}: unknown option "${name}", want ${near ? `"${near}"` : `one of ${known.join(", ")}`}`);
  }
}

/** The word that differs in the fewest letters; undefined where none is near. */
export function nearest(word: string, words: readonly string[]): string | undefined {
  const ranked = words.map((other) => ({ other, distance: distance(word.toLowerCase(), other.toLowerCase()) })).sort((a, b) =>
    a.distance - b.distance
  );
  return ranked.length > 0 && ranked[0].distance <= Math.max(2, word.length / 3) ? ranked[0].other : undefined;
}

/** Letters to insert, delete or replace. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) next[j] = Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1));
    row = next;
  }
  return row[b.length];
}

/** A number within [least, most], whole where `whole` says so. Errors: TypeError, RangeError. */
export function numberIn(action: string, name: string, value: unknown, least: number, most: number, whole = false): number {
  const wanted = `${whole ? "a whole number" : "a number"} from ${least}${most === Infinity ? "" : ` to ${most}`}`;
  if (typeof value !== "number") throw new TypeError(`Cannot ${action}: ${name} is ${shown(value)}, want ${wanted}`);
  if (Number.isNaN(value) || value < least || value > most || (whole && !Number.isInteger(value) && value !== Infinity)) {
    throw new RangeError(`Cannot ${action}: ${name} is ${value}, want ${wanted}`);
  }
  return value;
}

/** True, false, or not said. Errors: TypeError. */
export function flagIn(action: string, name: string, value: unknown): void {
  if (value === undefined || typeof value === "boolean") return;
  throw new TypeError(`Cannot ${action}: ${name} is ${shown(value)}, want true or false`);
}

/** One of a few words. Errors: TypeError, RangeError. */
export function oneOf(action: string, name: string, value: unknown, words: readonly string[]): void {
  if (words.includes(value as string)) return;
  const Kind = typeof value === "string" ? RangeError : TypeError;
  throw new Kind(`Cannot ${action}: ${name} is ${shown(value)}, want ${words.map((word) => `"${word}"`).join(" or ")}`);
}

/** A value as a sentence shows it. */
export function shown(value: unknown): string {
  return typeof value === "string"
    ? JSON.stringify(value)
    : value === null
    ? "null"
    : typeof value === "object"
    ? "an object"
    : String(value);
}
