/** Safetensors: an 8-byte length, a JSON header, then the bytes. Single files and sharded ones with an index. */
import { basename, dirname, join } from "node:path";
import { count } from "../format.ts";
import type { WeightType } from "../types.ts";
import { bytesOf, type Checkpoint, FormatError, type TensorSpan } from "./checkpoint.ts";
import { HeaderFile } from "./header_file.ts";
import { parseJson, readJson } from "./json_file.ts";

const types: Readonly<Record<string, WeightType>> = { F32: "f32", F16: "f16", BF16: "bf16" };
const MOST_HEADER = 100 * 1024 * 1024; // the format's own limit

/** Reads the header of one file, or of all files of an index (`*.safetensors.index.json`). */
export async function readSafetensors(path: string): Promise<Checkpoint> {
  const map = path.endsWith(".index.json") ? await shards(path) : null;
  const names = map ? [...new Set(map.values())].sort() : [basename(path)];
  const files = names.map((name) => join(dirname(path), name));
  const tensors = new Map<string, TensorSpan>();
  for (const [place, file] of files.entries()) {
    for (const span of await readHeader(file, place)) {
      if (tensors.has(span.name)) throw new FormatError(file, `tensor ${span.name} stands in two files, want it once`);
      tensors.set(span.name, span);
    }
  }
  for (const [name, file] of map ?? []) {
    const found = tensors.get(name);
    if (!found || names[found.file] !== file) throw new FormatError(path, `tensor ${name} is not in ${file}, where its weight_map puts it`);
  }
  return { files, tensors };
}

/** Tensor name -> file name. */
async function shards(index: string): Promise<Map<string, string>> {
  const { weight_map: map } = await readJson(index, { what: "index" });
  if (typeof map !== "object" || map === null) throw new FormatError(index, "it has no weight_map");
  const entries = Object.entries(map);
  for (const [, file] of entries) {
    if (typeof file !== "string" || file !== basename(file) || file.includes("\\")) {
      throw new FormatError(index, `weight_map names ${JSON.stringify(file)}, want a file beside the index`);
    }
  }
  return new Map(entries as [string, string][]);
}

async function readHeader(path: string, place: number): Promise<TensorSpan[]> {
  const file = await HeaderFile.open(path);
  try {
    const { size } = file;
    if (size < 8) throw new FormatError(path, `it has ${count(size)} bytes, want at least 8`);
    const first = await file.read(0, 8);
    if (new TextDecoder().decode(first.subarray(0, 4)) === "GGUF") {
      throw new FormatError(path, "it is a GGUF file, want it named so (.gguf)");
    }
    const length = Number(new DataView(first.buffer).getBigUint64(0, true));
    const begin = 8 + length;
    if (length > MOST_HEADER || begin > size) {
      const doubt = "is it a safetensors file, and whole?";
      throw new FormatError(path, `its header ends at byte ${count(begin)} but the file has ${count(size)} (${doubt})`);
    }
    return spansOf(path, place, new TextDecoder().decode(await file.read(8, length)), begin, size);
  } finally {
    await file.close();
  }
}

/** The tensors that a header names, each checked against the size of the file. */
export function spansOf(path: string, file: number, header: string, begin: number, size: number): TensorSpan[] {
  const entries = parseJson(path, header, "header");
  const spans: TensorSpan[] = [];
  for (const [name, entry] of Object.entries(entries)) {
    if (name === "__metadata__") continue;
    spans.push(spanOf(path, file, name, entry, begin, size));
  }
  // The format wants every byte to belong to one tensor: a hole is what a tensor that is named twice leaves.
  let end = begin;
  let before = "";
  for (const { name, offset, bytes } of [...spans].sort((a, b) => a.offset - b.offset || a.bytes - b.bytes)) {
    if (offset < end) throw new FormatError(path, `tensors ${before} and ${name} overlap`);
    if (offset > end) throw new FormatError(path, `${count(offset - end)} bytes before tensor ${name} belong to no tensor`);
    end = offset + bytes;
    before = name;
  }
  if (end < size) throw new FormatError(path, `it has ${count(size - end)} bytes after its last tensor, want none`);
  return spans;
}

/** Reads one entry of the header: a name and what is said of it. */
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
    const found = `tensor ${name} has ${count(offsets[1] - offsets[0])} bytes`;
    throw new FormatError(
      path,
      `${found}, want ${Number.isNaN(bytes) ? "fewer elements than" : `${count(bytes)} for`} ${dtype} [${shape.join(", ")}]`,
    );
  }
  if (begin + offsets[1] > size) {
    throw new FormatError(path, `tensor ${name} ends at byte ${count(begin + offsets[1])} but the file has ${count(size)} (was it cut?)`);
  }
  return { name, type, shape, file, offset: begin + offsets[0], bytes };
}

function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((extent) => Number.isSafeInteger(extent) && extent >= 0);
}
