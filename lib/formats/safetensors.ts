/** Safetensors: an 8-byte length, a JSON header, then the bytes. Single files and sharded ones with an index. */
import { open, readFile, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { count } from "../format.ts";
import type { WeightType } from "../types.ts";
import { bytesOf, type Checkpoint, FormatError, type TensorSpan } from "./checkpoint.ts";

const types: Readonly<Record<string, WeightType>> = { F32: "f32", F16: "f16", BF16: "bf16" };
const MOST_HEADER = 100 * 1024 * 1024; // the format's own limit

/** Reads the header of one file, or of all files of an index (`*.safetensors.index.json`). */
export async function readSafetensors(path: string): Promise<Checkpoint> {
  const files = path.endsWith(".index.json") ? await shards(path) : [path];
  const tensors = new Map<string, TensorSpan>();
  for (const [place, file] of files.entries()) {
    for (const span of await readHeader(file, place)) {
      if (tensors.has(span.name)) throw new FormatError(file, `tensor ${span.name} stands in two files, want it once`);
      tensors.set(span.name, span);
    }
  }
  return { files, tensors };
}

async function shards(index: string): Promise<string[]> {
  const map = (parse(index, await readFile(index, "utf8"), "index") as { weight_map?: unknown }).weight_map;
  if (typeof map !== "object" || map === null) throw new FormatError(index, "it has no weight_map");
  const names = [...new Set(Object.values(map))].sort();
  for (const name of names) {
    if (typeof name !== "string" || name.includes("/") || name.includes("\\")) {
      throw new FormatError(index, `weight_map names ${JSON.stringify(name)}, want a file beside the index`);
    }
  }
  return names.map((name) => join(dirname(index), name as string));
}

async function readHeader(path: string, file: number): Promise<TensorSpan[]> {
  const size = (await stat(path)).size;
  const handle = await open(path, "r");
  let text: string;
  let begin: number;
  try {
    const head = new Uint8Array(8);
    if (size < 8) throw new FormatError(path, `it has ${count(size)} bytes, want at least 8`);
    await handle.read(head, 0, 8, 0);
    const length = Number(new DataView(head.buffer).getBigUint64(0, true));
    begin = 8 + length;
    if (length > MOST_HEADER || begin > size) {
      throw new FormatError(
        path,
        `its header ends at byte ${count(begin)} but the file has ${count(size)} (is it a safetensors file, and whole?)`,
      );
    }
    const bytes = new Uint8Array(length);
    await handle.read(bytes, 0, length, 8);
    text = new TextDecoder().decode(bytes);
  } finally {
    await handle.close();
  }
  return spansOf(path, file, text, begin, size);
}

/** The tensors that a header names, each checked against the size of the file. */
export function spansOf(path: string, file: number, header: string, begin: number, size: number): TensorSpan[] {
  const entries = parse(path, header, "header");
  const spans: TensorSpan[] = [];
  for (const [name, entry] of Object.entries(entries)) {
    if (name === "__metadata__") continue;
    spans.push(spanOf(path, file, name, entry, begin, size));
  }
  const sorted = [...spans].sort((a, b) => a.offset - b.offset);
  for (const [i, span] of sorted.entries()) {
    const next = sorted[i + 1];
    if (next && span.offset + span.bytes > next.offset) throw new FormatError(path, `tensors ${span.name} and ${next.name} overlap`);
  }
  return spans;
}

function spanOf(path: string, file: number, name: string, entry: unknown, begin: number, size: number): TensorSpan {
  const { dtype, shape, data_offsets: offsets } = (entry ?? {}) as { dtype?: unknown; shape?: unknown; data_offsets?: unknown };
  const type = typeof dtype === "string" ? types[dtype] : undefined;
  if (!type) throw new FormatError(path, `tensor ${name} is ${JSON.stringify(dtype)}, want one of ${Object.keys(types).join(", ")}`);
  if (!isCounts(shape) || shape.length > 4) {
    throw new FormatError(path, `tensor ${name} has the shape ${JSON.stringify(shape)}, want up to 4 whole numbers`);
  }
  if (!isCounts(offsets) || offsets.length !== 2 || offsets[0] > offsets[1]) {
    throw new FormatError(path, `tensor ${name} has data_offsets ${JSON.stringify(offsets)}, want a begin and an end`);
  }
  const bytes = bytesOf(type, shape);
  if (offsets[1] - offsets[0] !== bytes) {
    throw new FormatError(
      path,
      `tensor ${name} has ${count(offsets[1] - offsets[0])} bytes, want ${count(bytes)} for ${dtype} [${shape.join(", ")}]`,
    );
  }
  if (begin + offsets[1] > size) {
    throw new FormatError(path, `tensor ${name} ends at byte ${count(begin + offsets[1])} but the file has ${count(size)}`);
  }
  return { name, type, shape, file, offset: begin + offsets[0], bytes };
}

function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((extent) => Number.isSafeInteger(extent) && extent >= 0);
}

function parse(path: string, text: string, what: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new FormatError(path, `its ${what} is not JSON`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new FormatError(path, `its ${what} is no JSON object`);
  return value as Record<string, unknown>;
}
