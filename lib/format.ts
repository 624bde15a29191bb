/** Numbers as sentences show them. */

/** 8192 -> "8,192". */
export function count(value: number): string {
  return Number.isFinite(value) ? value.toLocaleString("en-US") : String(value);
}
