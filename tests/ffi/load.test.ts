// Bytes of a mapped file come to lie in a tensor as they are, and are summed there.
import { assertEquals } from "@std/assert";
import { describe, it } from "node:test";
import { blockBytes, checksums, open } from "../../lib/device.ts";
import { scratch } from "../support/scratch.ts";
import { assertRefused } from "./support.ts";

const files = scratch();
const text = (text: string) => new TextEncoder().encode(text);

/** RFC 3720, B.4, bit by bit. */
function crc32c(bytes: Uint8Array): number {
  let sum = 0xffffffff;
  for (const byte of bytes) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit++) sum = (sum >>> 1) ^ (sum & 1 ? 0x82f63b78 : 0);
  }
  return ~sum >>> 0;
}

const noise = (length: number) => Uint8Array.from({ length }, (_, i) => Math.imul(i + 1, 2654435761) >>> 24);

describe("a checksum", () => {
  it("is the published CRC-32C", () => {
    assertEquals([...checksums(text("123456789"))], [0xe3069283]);
    assertEquals([...checksums(new Uint8Array(32))], [0x8a9136aa]);
    assertEquals([...checksums(new Uint8Array(0))], []);
  });

  it("is of each block, however many there are and whatever is left", () => {
    for (const length of [1, 7, 8, 9, blockBytes - 1, blockBytes, 3 * blockBytes + 5, 4 * blockBytes, 9 * blockBytes + 1]) {
      const bytes = noise(length);
      const want = Array.from(
        { length: Math.ceil(length / blockBytes) },
        (_, i) => crc32c(bytes.subarray(i * blockBytes, (i + 1) * blockBytes)),
      );
      assertEquals([...checksums(bytes)], want, `${length} bytes`);
    }
  });
});

describe("loading rows", () => {
  it("brings a file's bytes to where they belong, and their sums", async () => {
    using device = await open("cpu", { threads: 2 });
    const bytes = noise(5 << 20);
    using file = device.file(files.file("rows.bin", bytes));
    using arena = device.arena(16 << 20);
    const tensor = arena.tensor("f16", [1, 2, 20_000, 64]);
    tensor.commit(20_000);
    const sums = arena.tensor("u32", [400]);
    const [offset, count, at] = [64 * 3, 64 * 30_000, 11];
    arena.load(tensor, offset, count, file, at, sums, 7);
    const want = bytes.slice(at, at + 2 * count);
    const found = await tensor.read(offset, count);
    assertEquals(new Uint8Array(found.buffer, 0, 2 * count), want);
    assertEquals(await sums.read(7, Math.ceil(2 * count / blockBytes)), checksums(want));
    assertEquals((await sums.read(0, 7)).every((sum) => sum === 0), true);
    assertEquals((await tensor.read(0, offset)).every((bits) => bits === 0), true);
  });

  it("refuses what lies outside the file, the tensor or the sums", async () => {
    using device = await open("cpu", { threads: 1 });
    using file = device.file(files.file("short.bin", noise(1000)));
    using arena = device.arena(1 << 20);
    const [tensor, sums] = [arena.tensor("f32", [400]), arena.tensor("u32", [1])];
    assertRefused("RKV_FILE", () => arena.load(tensor, 0, 251, file, 0, sums, 0), "1004 bytes", "1000");
    assertRefused("RKV_FILE", () => arena.load(tensor, 0, 1, file, -1, sums, 0), "-1");
    assertRefused("RKV_RANGE", () => arena.load(tensor, 399, 2, file, 0, sums, 0), "400");
    assertRefused("RKV_RANGE", () => arena.load(tensor, 0, 4, file, 0, sums, 1), "sums");
    assertRefused("RKV_DTYPE", () => arena.load(tensor, 0, 4, file, 0, arena.tensor("i32", [1]), 0), "sums");
  });

  it("ends with its file closed and its arena disposed at once", async () => {
    using device = await open("cpu", { threads: 2 });
    const path = files.file("closed.bin", noise(1 << 20));
    const arena = device.arena(4 << 20);
    const tensor = arena.tensor("f32", [1 << 18]);
    const sums = arena.tensor("u32", [64]);
    const file = device.file(path);
    arena.load(tensor, 0, 1 << 18, file, 0, sums, 0);
    file[Symbol.dispose]();
    assertEquals(await sums.read(), checksums(noise(1 << 20)));
    arena[Symbol.dispose]();
  });
});
