// Damaged and hostile safetensors: each is named for what it is, and nothing is read or reserved past the file's end.
import { assertEquals, assertRejects } from "@std/assert";
import { describe, it } from "node:test";
import { FormatError } from "../../lib/formats/checkpoint.ts";
import { readSafetensors } from "../../lib/formats/safetensors.ts";
import { scratch } from "../support/scratch.ts";

const files = scratch();

/** A file of a header (an object, or raw text) and `bytes` bytes after it. */
function fileOf(header: unknown, bytes: number, length?: bigint): Uint8Array {
  const json = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const file = new Uint8Array(8 + json.length + bytes);
  new DataView(file.buffer).setBigUint64(0, length ?? BigInt(json.length), true);
  file.set(json, 8);
  return file;
}

const vector = (begin: number, end: number, dtype = "F32") => ({ dtype, shape: [(end - begin) / 4], data_offsets: [begin, end] });
const whole = { __metadata__: { format: "pt" }, b: vector(16, 24), a: { dtype: "BF16", shape: [2, 4], data_offsets: [0, 16] } };

/** `content` is refused with a sentence that has `words`. */
function refuses(what: string, content: Uint8Array, ...words: string[]): void {
  it(`refuses ${what}`, async () => {
    const path = files.file(`${what.replaceAll(/\W+/g, "-")}.safetensors`, content);
    for (const word of ["Cannot load", ...words]) await assertRejects(() => readSafetensors(path), FormatError, word);
  });
}

describe("one safetensors file", () => {
  it("says where the bytes of each tensor lie", async () => {
    const content = fileOf(whole, 24);
    const { tensors } = await readSafetensors(files.file("whole.safetensors", content));
    const begin = content.length - 24;
    assertEquals([...tensors.values()], [
      { name: "b", type: "f32", shape: [2], file: 0, offset: begin + 16, bytes: 8 },
      { name: "a", type: "bf16", shape: [2, 4], file: 0, offset: begin, bytes: 16 },
    ]);
  });

  refuses("an empty file", new Uint8Array(0), "it has 0 bytes");
  refuses("a file of seven bytes", new Uint8Array(7), "it has 7 bytes");
  refuses("a GGUF file", new TextEncoder().encode("GGUF and what follows"), "it is a GGUF file, want it named so");
  refuses("a header longer than the file", fileOf(whole, 24, 1_000n), "its header ends at byte 1,008 but the file has");
  refuses("a header of 2^63 bytes", fileOf(whole, 24, 1n << 63n), "its header ends at byte");
  refuses("a header of 2^64 - 1 bytes", fileOf(whole, 24, (1n << 64n) - 1n), "its header ends at byte");
  refuses("a header that is not JSON", fileOf("{not json", 24), "its header is not JSON");
  refuses("a header that is a list", fileOf("[1, 2]", 24), "its header is no JSON object");
  refuses("a header cut short", fileOf(whole, 24, 20n), "its header is not JSON");
  refuses("a file cut in its tensors", fileOf(whole, 20), "tensor b ends at byte", "but the file has", "was it cut?");
  refuses("bytes that belong to no tensor", fileOf(whole, 28), "4 bytes after its last tensor");
  refuses("a hole between tensors", fileOf({ a: vector(0, 8), b: vector(12, 16) }, 16), "4 bytes before tensor b");
  refuses(
    "a tensor named twice",
    fileOf(`{"a":${JSON.stringify(vector(0, 8))},"a":${JSON.stringify(vector(8, 16))}}`, 16),
    "bytes before tensor a",
  );
  refuses("tensors that overlap", fileOf({ a: vector(0, 8), b: vector(4, 12) }, 12), "tensors a and b overlap");
  refuses("a dtype that has no kernels", fileOf({ a: vector(0, 8, "F8_E4M3") }, 8), 'tensor a is "F8_E4M3", want one of F32, F16, BF16');
  refuses("a dtype that is no text", fileOf({ a: { ...vector(0, 8), dtype: 7 } }, 8), "tensor a is 7");
  refuses("a tensor that is null", fileOf({ a: null }, 8), "tensor a");
  refuses("a shape that is no list", fileOf({ a: { ...vector(0, 8), shape: "2" } }, 8), "tensor a has the shape");
  refuses("a negative extent", fileOf({ a: { ...vector(0, 8), shape: [-2] } }, 8), "tensor a has the shape [-2]");
  refuses("a fractional extent", fileOf({ a: { ...vector(0, 8), shape: [0.5, 4] } }, 8), "tensor a has the shape");
  refuses("five extents", fileOf({ a: { ...vector(0, 8), shape: [1, 1, 1, 1, 2] } }, 8), "tensor a has the shape");
  refuses("extents whose product overflows", fileOf({ a: { ...vector(0, 8), shape: [2 ** 40, 2 ** 40] } }, 8), "tensor a has 8 bytes");
  refuses(
    "fewer bytes than the shape wants",
    fileOf({ a: { ...vector(0, 8), shape: [3] } }, 8),
    "tensor a has 8 bytes, want 12 for F32 [3]",
  );
  refuses("offsets that are no pair", fileOf({ a: { ...vector(0, 8), data_offsets: [0] } }, 8), "tensor a has data_offsets");
  refuses("offsets that run backwards", fileOf({ a: { ...vector(0, 8), data_offsets: [8, 0] } }, 8), "tensor a has data_offsets");
  refuses("an offset past 2^53", fileOf({ a: { ...vector(0, 8), data_offsets: [2 ** 53, 2 ** 53 + 8] } }, 8), "tensor a has data_offsets");
});

describe("a sharded checkpoint", () => {
  const shard = (name: string) => fileOf({ [name]: vector(0, 8) }, 8);
  const map = { metadata: { total_size: 16 }, weight_map: { a: "one.safetensors", b: "two.safetensors" } };
  const sharded = (name: string, index: unknown, changed: Record<string, unknown> = {}) => {
    const both = { "one.safetensors": shard("a"), "two.safetensors": shard("b") };
    return files.folder(name, { ...both, ...changed, "m.safetensors.index.json": index }) + "/m.safetensors.index.json";
  };

  it("has the tensors of all its files", async () => {
    const { files: paths, tensors } = await readSafetensors(sharded("sharded", map));
    assertEquals(paths.map((path) => path.split("/").at(-1)), ["one.safetensors", "two.safetensors"]);
    assertEquals([...tensors.values()].map(({ name, file }) => [name, file]), [["a", 0], ["b", 1]]);
  });

  const refusals: [what: string, changed: Record<string, unknown>, index: unknown, word: string][] = [
    ["has no weight_map", {}, { metadata: {} }, "it has no weight_map"],
    ["is not JSON", {}, "{", "its index is not JSON"],
    ["leads out of its folder", {}, { weight_map: { a: "../one.safetensors" } }, "want a file beside the index"],
    ["names a number", {}, { weight_map: { a: 3 } }, "want a file beside the index"],
    ["names a file that is not there", {}, { weight_map: { a: "three.safetensors" } }, "it is not there"],
    [
      "puts a tensor where it is not",
      {},
      { weight_map: { a: "two.safetensors", b: "one.safetensors" } },
      "tensor a is not in two.safetensors",
    ],
    ["has a tensor in two of its files", { "two.safetensors": shard("a") }, map, "tensor a stands in two files"],
  ];
  for (const [i, [what, changed, index, word]] of refusals.entries()) {
    it(`is refused when its index ${what}`, async () => {
      const path = sharded(`sharded-${i}`, index, changed);
      await assertRejects(() => readSafetensors(path), FormatError, word);
    });
  }
});
