/** GGUF versions 2 and 3, little-endian: metadata, then where each tensor lies. Single files, and split ones. */
import { existsSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { count } from "../format.ts";
import type { WeightType } from "../types.ts";
import { bytesOf, type Checkpoint, FormatError, supportedTypes, type TensorSpan } from "./checkpoint.ts";
import { GgufCursor, type GgufMetadata, type GgufValue, NeedsMore } from "./gguf_values.ts";
import { HeaderFile } from "./header_file.ts";

export interface GgufCheckpoint extends Checkpoint {
  readonly metadata: GgufMetadata;
}

/** Names of tensor types by number; those that are not supported are refused by name. Source: ggml.h. */
const typeNames: Readonly<Record<number, string>> = {
  0: "F32",
  1: "F16",
  2: "Q4_0",
  3: "Q4_1",
  6: "Q5_0",
  7: "Q5_1",
  8: "Q8_0",
  9: "Q8_1",
  10: "Q2_K",
  11: "Q3_K",
  12: "Q4_K",
  13: "Q5_K",
  14: "Q6_K",
  15: "Q8_K",
  16: "IQ2_XXS",
  17: "IQ2_XS",
  18: "IQ3_XXS",
  19: "IQ1_S",
  20: "IQ4_NL",
  21: "IQ3_S",
  22: "IQ2_S",
  23: "IQ4_XS",
  24: "I8",
  25: "I16",
  26: "I32",
  27: "I64",
  28: "F64",
  29: "IQ1_M",
  30: "BF16",
  34: "TQ1_0",
  35: "TQ2_0",
  39: "MXFP4",
}; // deno-fmt-ignore
const types: Readonly<Record<number, WeightType>> = {
  0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 12: "q4_k", 13: "q5_k", 14: "q6_k", 30: "bf16",
}; // deno-fmt-ignore

const FIRST_READ = 4 * 1024 * 1024; // a vocabulary of 128k tokens takes 8 MB
const MOST_HEADER = 256 * 1024 * 1024; // thirty times that; what asks for more is damaged

/** Reads the headers of a file, and of its other parts where it is split. Errors: FormatError. */
export async function readGguf(path: string): Promise<GgufCheckpoint> {
  const part = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/.exec(basename(path));
  const parts = part ? Number(part[3]) : 1;
  const nameOf = (i: number) => join(dirname(path), `${part![1]}-${String(i + 1).padStart(5, "0")}-of-${part![3]}.gguf`);
  const files = part && parts > 1 ? Array.from({ length: parts }, (_, i) => nameOf(i)) : [path];
  const tensors = new Map<string, TensorSpan>();
  let metadata: GgufMetadata = new Map();
  for (const [place, file] of files.entries()) {
    if (parts > 1 && !existsSync(file)) {
      throw new FormatError(file, `it is not there, want all ${parts} parts of the model beside each other`);
    }
    const header = await readHeader(file, place);
    if (place === 0) metadata = header.metadata;
    const [number, all] = [header.metadata.get("split.no") ?? 0, header.metadata.get("split.count") ?? 1];
    if (number !== place || Math.max(1, Number(all)) !== files.length) {
      const said = `it is part ${Number(number) + 1} of ${all} by its metadata, but ${place + 1} of ${files.length} by its name`;
      throw new FormatError(file, `${said}, want parts named NAME-00001-of-0000N.gguf`);
    }
    for (const span of header.tensors) {
      if (tensors.has(span.name)) throw new FormatError(file, `tensor ${span.name} stands in it twice, or in two parts`);
      tensors.set(span.name, span);
    }
  }
  const total = metadata.get("split.tensors.count");
  if (files.length > 1 && total !== tensors.size) {
    throw new FormatError(path, `its parts have ${count(tensors.size)} tensors, want ${String(total)}`);
  }
  return { files, tensors, metadata };
}

/** The numbers of a small F32 tensor (rope_freqs): the only bytes of a model that JavaScript sees. */
export async function readFloats(checkpoint: Checkpoint, span: TensorSpan): Promise<Float32Array> {
  const file = await HeaderFile.open(checkpoint.files[span.file]);
  try {
    return new Float32Array((await file.read(span.offset, span.bytes)).buffer);
  } finally {
    await file.close();
  }
}

async function readHeader(path: string, place: number): Promise<{ metadata: GgufMetadata; tensors: TensorSpan[] }> {
  const file = await HeaderFile.open(path);
  try {
    let wanted = FIRST_READ;
    for (;;) {
      const bytes = await file.read(0, Math.min(wanted, file.size));
      const header = parseGguf(path, place, bytes, file.size);
      if (!(header instanceof NeedsMore)) return header;
      if (header.bytes > MOST_HEADER) throw new FormatError(path, `its header is longer than ${count(MOST_HEADER)} bytes (is it damaged?)`);
      wanted = Math.max(2 * wanted, header.bytes);
    }
  } finally {
    await file.close();
  }
}

/** Parses the header from the beginning of a file of `size` bytes, or says how many bytes it wants at least. */
export function parseGguf(
  path: string,
  place: number,
  bytes: Uint8Array,
  size: number,
): { metadata: GgufMetadata; tensors: TensorSpan[] } | NeedsMore {
  const cursor = new GgufCursor(path, bytes, size);
  try {
    checkMagic(cursor);
    const tensorCount = cursor.items(24, "tensors");
    const metadata = metadataOf(cursor);
    return { tensors: tensorsOf(cursor, place, tensorCount, alignmentOf(path, metadata)), metadata };
  } catch (error) {
    if (error instanceof NeedsMore) return error;
    throw error;
  }
}

function checkMagic(cursor: GgufCursor): void {
  const { path, bytes, size } = cursor;
  if (size < 24) throw new FormatError(path, `it has ${count(size)} bytes, want a GGUF header of at least 24`);
  const magic = String.fromCharCode(...bytes.subarray(cursor.take(4, "the magic"), 4));
  if (["lmgg", "fmgg", "tjgg"].includes(magic)) {
    throw new FormatError(path, "it is in a GGML format older than GGUF, want GGUF version 2 or 3");
  }
  if (magic !== "GGUF") throw new FormatError(path, `it begins with ${JSON.stringify(magic)}, want "GGUF" (is it a GGUF file?)`);
  const version = cursor.u32("the version");
  if (version !== 0 && version % 0x10000 === 0) throw new FormatError(path, "it is big-endian, want a little-endian GGUF file");
  if (version !== 2 && version !== 3) throw new FormatError(path, `it is GGUF version ${version}, supported: 2, 3`);
}

function metadataOf(cursor: GgufCursor): GgufMetadata {
  const entries = cursor.items(13, "metadata entries");
  const found = new Map<string, GgufValue | (() => string[])>();
  for (let i = 0; i < entries; i++) {
    const key = cursor.string("a metadata key");
    if (found.has(key)) throw new FormatError(cursor.path, `metadata key ${key} stands in it twice`);
    found.set(key, cursor.value(key));
  }
  return new Map([...found].map(([key, value]) => [key, typeof value === "function" ? value() : value]));
}

function alignmentOf(path: string, metadata: GgufMetadata): number {
  const alignment = metadata.get("general.alignment") ?? 32;
  if (typeof alignment === "number" && alignment >= 8 && alignment <= 2 ** 20 && Number.isInteger(Math.log2(alignment))) return alignment;
  throw new FormatError(path, `general.alignment is ${String(alignment)}, want a power of two from 8`);
}

function tensorsOf(cursor: GgufCursor, place: number, tensorCount: number, alignment: number): TensorSpan[] {
  const { path, size } = cursor;
  const spans: TensorSpan[] = [];
  for (let i = 0; i < tensorCount; i++) spans.push(tensorOf(cursor, place));
  const begin = Math.ceil(cursor.at / alignment) * alignment;
  let end = begin;
  let before = "";
  const placed = spans.map((span) => ({ ...span, offset: begin + span.offset }));
  for (const { name, offset, bytes } of [...placed].sort((a, b) => a.offset - b.offset || a.bytes - b.bytes)) {
    if (offset % alignment !== 0) {
      throw new FormatError(path, `tensor ${name} begins at byte ${count(offset)}, want a multiple of ${alignment}`);
    }
    if (offset + bytes > size) {
      throw new FormatError(path, `tensor ${name} ends at byte ${count(offset + bytes)} but the file has ${count(size)} (was it cut?)`);
    }
    if (offset < end) throw new FormatError(path, `tensors ${before} and ${name} overlap`);
    end = offset + bytes;
    before = name;
  }
  return placed;
}

/** Its offset counts from where the tensors begin. */
function tensorOf(cursor: GgufCursor, place: number): TensorSpan {
  const { path } = cursor;
  const name = cursor.string("a tensor's name");
  const dimensions = cursor.u32(`the dimensions of tensor ${name}`);
  if (dimensions < 1 || dimensions > 4) throw new FormatError(path, `tensor ${name} has ${count(dimensions)} dimensions, want 1 to 4`);
  const shape: number[] = [];
  for (let i = 0; i < dimensions; i++) shape.unshift(cursor.u64(`the shape of tensor ${name}`)); // the file counts from the row's length on
  const number = cursor.u32(`the type of tensor ${name}`);
  const offset = cursor.u64(`the offset of tensor ${name}`);
  const type = types[number];
  if (!type) throw new FormatError(path, `tensor ${name} is ${typeNames[number] ?? `of type ${number}`}, supported: ${supportedTypes}`);
  const bytes = bytesOf(type, shape);
  if (Number.isNaN(bytes)) {
    throw new FormatError(
      path,
      `tensor ${name} is ${typeNames[number]} [${shape.map(count).join(", ")}], want rows of whole blocks and a size that can be counted`,
    );
  }
  return { name, type, shape, file: place, offset, bytes };
}
