/** JSON objects: the small files of a model's directory, and headers that are written so. */
import { readFile } from "node:fs/promises";
import { FormatError } from "./checkpoint.ts";
import { impostorOf } from "./impostors.ts";

export type JsonObject = Readonly<Record<string, unknown>>;

/** The object in a file; of an `optional` file that is not there, one without fields. Errors: FormatError saying what the file is instead. */
export async function readJson(file: string, { optional = false, what = "content" } = {}): Promise<JsonObject> {
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    const { code, message } = error as Error & { code?: string };
    if (code !== "ENOENT") throw new FormatError(file, message);
    if (optional) return {};
    throw new FormatError(file, "it is not there");
  }
  const impostor = impostorOf(text.slice(0, 256));
  if (impostor) throw new FormatError(file, impostor);
  return parseJson(file, text, what);
}

/** `what` of the file the text is, for sentences. */
export function parseJson(file: string, text: string, what: string): JsonObject {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new FormatError(file, `its ${what} is not JSON${text.trim() === "" ? ", for it is empty" : ""}`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new FormatError(file, `its ${what} is no JSON object`);
  return value as JsonObject;
}
