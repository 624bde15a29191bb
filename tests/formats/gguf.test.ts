// GGUF headers: what a sound one says, and each damaged or hostile one named for what it is.
import { assertEquals, assertRejects } from "@std/assert";
import { describe, it } from "node:test";
import { FormatError } from "../../lib/formats/checkpoint.ts";
import { readGguf } from "../../lib/formats/gguf.ts";
import { scratch } from "../support/scratch.ts";
import { ggufFile, type Parts, type StoredTensor, text, u32, u64, value } from "./gguf_file.ts";

const files = scratch();
const a = { name: "a", dims: [64, 2], type: 8, offset: 0 }; // Q8_0: 2 rows of 68 bytes
const b = { name: "b", dims: [4], type: 0, offset: 160 };
const sound: Parts = { metadata: [["general.name", value.string("é")]], tensors: [a, b], data: 176 };

function refuses(what: string, content: Uint8Array | Parts, ...words: string[]): void {
  it(`refuses ${what}`, async () => {
    const path = files.file(`${what.replaceAll(/\W+/g, "-")}.gguf`, content instanceof Uint8Array ? content : ggufFile(content));
    for (const word of ["Cannot load", ...words]) await assertRejects(() => readGguf(path), FormatError, word);
  });
}
const bytes = (content: string) => new TextEncoder().encode(content);
const one = (changed: Partial<StoredTensor>): Parts => ({
  tensors: [{ ...a, ...changed }],
  data: 160,
});

describe("one GGUF file", () => {
  for (const version of [2, 3]) {
    it(`of version ${version} says where the bytes of each tensor lie, and its metadata`, async () => {
      const content = ggufFile({ ...sound, version });
      const { tensors, metadata } = await readGguf(files.file(`sound-${version}.gguf`, content));
      const begin = content.length - 176;
      assertEquals([...tensors.values()], [
        { name: "a", type: "q8_0", shape: [2, 64], file: 0, offset: begin, bytes: 136 },
        { name: "b", type: "f32", shape: [4], file: 0, offset: begin + 160, bytes: 16 },
      ]);
      assertEquals(metadata.get("general.name"), "é");
    });
  }

  it("keeps metadata of every kind", async () => {
    const entries: [string, ReturnType<typeof value.u8>][] = [
      ["u8", value.u8(255)],
      ["u16", value.u16(65535)],
      ["i32", value.i32(-1)],
      ["f32", value.f32(0.5)],
      ["bool", value.bool(true)],
      ["u64", value.u64(2n ** 52n)],
      ["strings", value.strings(["", "a", "ĠĠ", "a text longer than twenty-four bytes"])],
      ["i32s", value.i32s([-1, 2])],
      ["none", value.strings([])],
      ["bools", { kind: 9, bytes: [...u32(7), ...u64(2), 1, 0] }],
      ["u64s", { kind: 9, bytes: [...u32(10), ...u64(1), ...u64(7)] }],
    ];
    const { metadata } = await readGguf(files.file("kinds.gguf", ggufFile({ metadata: entries })));
    assertEquals(Object.fromEntries(metadata), {
      u8: 255,
      u16: 65535,
      i32: -1,
      f32: 0.5,
      bool: true,
      u64: 2 ** 52,
      strings: ["", "a", "ĠĠ", "a text longer than twenty-four bytes"],
      i32s: Int32Array.of(-1, 2),
      none: [],
      bools: Uint8Array.of(1, 0),
      u64s: Float64Array.of(7),
    });
  });

  it("keeps a vocabulary of 32,000 tokens, whose header goes beyond the first read", async () => {
    const words = Array.from({ length: 32_000 }, (_, i) => `Ġtoken number ${i}`);
    const path = files.file(
      "large.gguf",
      ggufFile({ metadata: [["tokens", value.strings(words)], ["merges", value.strings([...words, ...words])]] }),
    );
    const { metadata } = await readGguf(path);
    assertEquals(metadata.get("tokens"), words);
    assertEquals((metadata.get("merges") as string[]).length, 64_000);
  });

  refuses("an empty file", new Uint8Array(0), "it has 0 bytes");
  refuses("a web page", bytes("<!DOCTYPE html><html><body>Sign in</body></html>"), "it is a web page");
  const pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4920739232\n";
  refuses("a Git LFS pointer", bytes(pointer), "it is a Git LFS pointer", "4,920,739,232 bytes");
  refuses("a web page that begins with a comment", bytes("\n<!-- saved --><html></html>"), "it is a web page");
  refuses("a zip archive", bytes("PK\x03\x04 data.pkl and so on, quite long"), "it is a zip archive", "want GGUF or safetensors");
  refuses("a file of another kind", bytes("Invalid username or password."), 'it begins with "Inva", want "GGUF" (is it a GGUF file?)');
  refuses("a GGML file", { magic: "tjgg" }, "older than GGUF");
  refuses("version 1", { version: 1 }, "it is GGUF version 1, supported: 2, 3");
  refuses("version 4", { version: 4 }, "it is GGUF version 4");
  refuses("a big-endian file", { version: 0x03000000 }, "it is big-endian");
  refuses("a big-endian file of version 2", { version: 0x02000000 }, "it is big-endian");
  for (const [what, cut] of [["metadata", 40], ["tensors' places", 90], ["last tensor", 1]] as const) {
    const whole = ggufFile(sound);
    refuses(`a file cut in its ${what}`, whole.subarray(0, cut === 1 ? whole.length - 1 : cut), "but the", "was it cut");
  }
  it("refuses a file cut anywhere", async () => {
    const whole = ggufFile(sound);
    for (let length = 0; length < whole.length; length++) {
      await assertRejects(() => readGguf(files.file("cut.gguf", whole.subarray(0, length))), FormatError, "Cannot load");
    }
  });

  refuses("2^64 - 1 tensors", { counts: { tensors: 2n ** 64n - 1n } }, "tensors, but the");
  refuses("2^40 metadata entries", { counts: { metadata: 2n ** 40n } }, "it says 1,099,511,627,776 metadata entries, but the");
  refuses("a list of 2^60 numbers", { metadata: [["k", { kind: 9, bytes: [...u32(5), ...u64(2n ** 60n)] }]] }, "items in k");
  refuses("a list of 2^40 texts", { metadata: [["k", { kind: 9, bytes: [...u32(8), ...u64(2n ** 40n)] }]] }, "items in k");
  refuses("a list of lists", { metadata: [["k", { kind: 9, bytes: [...u32(9), ...u64(1), ...u64(1)] }]] }, "k is a list of lists");
  refuses("a text of 2^63 bytes", { metadata: [["k", { kind: 8, bytes: u64(2n ** 63n) }]] }, "k at byte", "but the file has");
  refuses("a kind that is not known", { metadata: [["k", { kind: 77, bytes: u64(0) }]] }, "k is of kind 77");
  refuses("a truth that is 2", { metadata: [["k", { kind: 7, bytes: [2] }]] }, "k is 2, want 0 or 1");
  refuses("a key that stands twice", { metadata: [["k", value.u8(1)], ["k", value.u8(2)]] }, "metadata key k stands in it twice");
  refuses("a key of 2^62 bytes", { counts: { metadata: 1 }, tensors: [{ ...a, name: "" }], data: 64 }, "Cannot load");
  for (const alignment of [0, 7, 24, 2 ** 31]) {
    refuses(
      `an alignment of ${alignment}`,
      { metadata: [["general.alignment", value.u32(alignment)]] },
      `general.alignment is ${alignment}`,
    );
  }

  for (
    const [type, name] of [[10, "Q2_K"], [20, "IQ4_NL"], [23, "IQ4_XS"], [39, "MXFP4"], [4, "of type 4"], [999, "of type 999"]] as const
  ) {
    refuses(
      `type ${name}`,
      one({ type }),
      `tensor a is ${name}, supported: F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K, Q6_K, Q4_1, Q5_0, Q5_1`,
    );
  }
  refuses("no dimension", one({ dims: [] }), "tensor a has 0 dimensions");
  refuses("five dimensions", one({ dims: [32, 1, 1, 1, 1] }), "tensor a has 5 dimensions");
  refuses("rows of half a block", one({ dims: [48, 2] }), "tensor a is Q8_0 [2, 48], want rows of whole blocks");
  refuses("extents whose product overflows", one({ dims: [2n ** 40n, 2n ** 40n] }), "a size that can be counted");
  refuses("a tensor longer than the file", one({ dims: [64, 200] }), "tensor a ends at byte", "but the file has");
  refuses("an offset past the file", one({ offset: 320 }), "tensor a ends at byte");
  refuses("an offset of 2^64 - 32", one({ dims: [64, 2], offset: 2n ** 64n - 32n }), "tensor a");
  refuses("an offset off the alignment", one({ offset: 8 }), "tensor a begins at byte", "want a multiple of 32");
  refuses("tensors that overlap", { tensors: [a, { ...b, offset: 128 }], data: 176 }, "tensors a and b overlap");
  refuses("a tensor that stands twice", { tensors: [a, { ...b, name: "a" }], data: 176 }, "tensor a stands in it twice");
  refuses(
    "a name longer than the file",
    new Uint8Array([...ggufFile({ counts: { tensors: 1 } }).subarray(0, 24), ...u64(2n ** 50n), ...text("")]),
    "Cannot load",
  );
});

describe("a GGUF file in parts", () => {
  const part = (number: number, of: number, tensor: Parts["tensors"], total = 2): Parts => ({
    metadata: [["split.no", value.u16(number)], ["split.count", value.u16(of)], ["split.tensors.count", value.i32(total)]],
    tensors: tensor,
    data: 176,
  });
  const folder = (name: string, first: Parts, second?: Parts) =>
    files.folder(name, {
      "m-00001-of-00002.gguf": ggufFile(first),
      ...(second ? { "m-00002-of-00002.gguf": ggufFile(second) } : {}),
    });

  it("has the tensors of all its parts, whichever is named", async () => {
    const path = folder("parts", part(0, 2, [a]), part(1, 2, [b]));
    for (const name of ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]) {
      const { files: paths, tensors } = await readGguf(`${path}/${name}`);
      assertEquals(paths.map((file) => file.split("/").at(-1)), ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]);
      assertEquals([...tensors.values()].map((span) => [span.name, span.file]), [["a", 0], ["b", 1]]);
    }
  });

  const refusals: [what: string, first: Parts, second: Parts | undefined, word: string][] = [
    ["a part is missing", part(0, 2, [a]), undefined, '"m-00002-of-00002.gguf": it is not there, want all 2 parts'],
    ["its parts are in another order", part(1, 2, [a]), part(0, 2, [b]), "it is part 2 of 2 by its metadata, but 1 of 2 by its name"],
    ["it says another number of parts", part(0, 3, [a]), part(1, 3, [b]), "of 3 by its metadata"],
    ["a tensor stands in two parts", part(0, 2, [a]), part(1, 2, [a]), "tensor a stands in it twice, or in two parts"],
    ["a tensor is missing", part(0, 2, [a], 3), part(1, 2, [b], 3), "its parts have 2 tensors, want 3"],
  ];
  for (const [i, [what, first, second, word]] of refusals.entries()) {
    it(`is refused when ${what}`, async () => {
      const path = `${folder(`parts-${i}`, first, second)}/m-00001-of-00002.gguf`;
      await assertRejects(() => readGguf(path), FormatError, word);
    });
  }

  it("is refused under another name", async () => {
    const path = files.file("renamed.gguf", ggufFile(part(0, 2, [a])));
    await assertRejects(() => readGguf(path), FormatError, "want parts named NAME-00001-of-0000N.gguf");
  });
});
