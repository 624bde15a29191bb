// Arenas reserve, tensors commit, and nothing is promised that the machine has not got.
import { assert, assertAlmostEquals, assertEquals, assertLess } from "@std/assert";
import process from "node:process";
import { describe, it } from "node:test";
import { open } from "../../lib/device.ts";
import { rowBytes } from "../../lib/tensor.ts";
import { dtypes } from "../../lib/types.ts";
import { assertRefused } from "./support.ts";

const device = await open("cpu", { threads: 2 });
const MiB = 1 << 20;

describe("an arena", () => {
  it("costs address space only, until rows are committed", () => {
    using arena = device.arena(2 ** 36);
    assertEquals(arena.memory(), { reserved: 2 ** 36, used: 0, committed: 0 });
    const rows = arena.tensor("f16", [2, 4, 65536, 64]);
    assertEquals(arena.memory().committed, 0);
    assertEquals(arena.memory().used, 2 * 4 * 65536 * 128);
    rows.commit(512, 1);
    assertEquals(arena.memory().committed, 4 * 512 * 128);
    rows.commit(1024);
    assertEquals(arena.memory().committed, 2 * 4 * 1024 * 128);
    rows.commit(100);
    assertEquals(arena.memory().committed, 2 * 4 * 1024 * 128, "what was committed stays");
  });

  it("refuses tensors past its end, with both numbers", () => {
    using arena = device.arena(MiB);
    arena.tensor("f32", [1000]);
    assertRefused("RKV_MEMORY", () => arena.tensor("f32", [MiB]), "4194304", "1048576");
    arena.tensor("f32", [1000]); // it is as good as before
  });

  it("refuses sizes that are none", () => {
    for (const bytes of [0, -5, 2 ** 47]) assertRefused("RKV_RANGE", () => device.arena(bytes), "reserve");
    using arena = device.arena(MiB);
    assertRefused("RKV_SHAPE", () => arena.tensor("f32", []), "0 dimensions");
    assertRefused("RKV_SHAPE", () => arena.tensor("f32", [1, 1, 1, 1, 1, 1]), "6 dimensions");
    assertRefused("RKV_SHAPE", () => arena.tensor("f32", [4, -1]), "-1");
    assertRefused("RKV_SHAPE", () => arena.tensor("f32", [2 ** 30, 2 ** 30, 2 ** 30]));
    assertRefused("RKV_DTYPE", () => arena.tensor("f8" as never, [4]), "dtype");
  });

  it("gives all back when it is closed", async () => {
    const resident = () => process.memoryUsage().rss;
    const arena = device.arena(512 * MiB);
    const tensor = arena.tensor("f32", [256, MiB / 4]);
    tensor.commit(256);
    const ones = new Float32Array(MiB / 4).fill(1);
    for (let row = 0; row < 256; row++) tensor.write(ones, row * ones.length);
    await arena.fence();
    const held = resident();
    arena[Symbol.dispose]();
    using last = device.arena(4096);
    await last.fence();
    assertLess(resident(), held - 200 * MiB);
  });
});

describe("a commit", () => {
  it("beyond the machine's memory is refused with needed and free, before anything is touched", () => {
    using arena = device.arena(2 ** 42);
    const { free } = device.memory();
    const rows = arena.tensor("f32", [1, 1, 2 ** 31 - 1, 64]);
    const sentence = assertRefused("RKV_MEMORY", () => rows.commit(2 ** 31 - 1), "needed", "free");
    const [needed, found] = [...sentence.matchAll(/\d+/g)].map(Number);
    assertEquals(needed, (2 ** 31 - 1) * 256);
    assertAlmostEquals(found, free, free / 2);
    assertEquals(arena.memory().committed, 0);
  });

  it("counts what was promised and not yet touched: many small ones are refused as one large one", () => {
    using arena = device.arena(2 ** 42);
    const { free } = device.memory();
    const rows = arena.tensor("f32", [1, 1, 2 ** 31 - 1, 64]);
    const step = Math.ceil(free / 256 / 40);
    let steps = 0;
    assertRefused("RKV_MEMORY", () => {
      for (; steps < 400; steps++) rows.commit((steps + 1) * step);
    });
    assert(steps >= 20 && steps <= 60, `refused after ${steps} fortieths of the free memory`);
    assertLess(arena.memory().committed, 1.5 * free);
  });

  it("past a tensor's rows or slots is refused", () => {
    using arena = device.arena(64 * MiB);
    const rows = arena.tensor("f32", [2, 4, 8192, 16]);
    assertRefused("RKV_RANGE", () => rows.commit(8193), "8193", "8192");
    assertRefused("RKV_RANGE", () => rows.commit(1, 2), "slot is 2");
  });
});

describe("a release", () => {
  it("gives back whole pages of one slot and loses what they held; the other slot keeps its rows", async () => {
    using arena = device.arena(256 * MiB);
    const [heads, capacity, width] = [2, 4096, 64];
    const rows = arena.tensor("f32", [2, heads, capacity, width]);
    rows.commit(capacity);
    rows.write(new Float32Array(2 * heads * capacity * width).fill(7));
    await arena.fence();
    rows.release(1, 1000);
    assertEquals(arena.memory().committed, heads * (capacity + 1000) * width * 4);
    const plane = capacity * width;
    for (let h = 0; h < heads; h++) {
      const kept = await rows.read(h * plane, plane);
      assert(kept.every((value) => value === 7), "another slot lost rows");
      const left = await rows.read((heads + h) * plane, plane);
      assert(left.subarray(0, 1000 * width).every((value) => value === 7), "rows before the released ones were lost");
      assert(left.subarray(1100 * width, plane - 100 * width).every((value) => value === 0), "released rows still hold something");
    }
    rows.commit(2000, 1);
    assertEquals(arena.memory().committed, heads * (capacity + 2000) * width * 4);
  });
});

describe("write and read", () => {
  for (const dtype of dtypes) {
    it(`bring ${dtype} back as it was, whole and in part`, async () => {
      using arena = device.arena(64 * MiB);
      for (const width of [1, 3, 4096]) {
        const tensor = arena.tensor(dtype, [5, width]);
        const bytes = Uint8Array.from({ length: 5 * rowBytes(dtype, width) }, (_, i) => (i * 31 + 7) % 119); // no byte makes a NaN
        tensor.write(bytes);
        const back = await tensor.read();
        assertEquals(new Uint8Array(back.buffer, back.byteOffset, back.byteLength), bytes);
        const rows = await tensor.read(2 * width, 2 * width);
        const part = rowBytes(dtype, width);
        assertEquals(new Uint8Array(rows.buffer, rows.byteOffset, rows.byteLength), bytes.subarray(2 * part, 4 * part));
      }
    });
  }

  it("keep their order, and what is written may be changed at once", async () => {
    using arena = device.arena(MiB);
    const tensor = arena.tensor("i32", [1000]);
    const data = new Int32Array(1000);
    const reads: Promise<ArrayLike<number>>[] = [];
    for (let round = 0; round < 50; round++) {
      tensor.write(data.fill(round));
      reads.push(tensor.read());
      data.fill(-1);
    }
    for (const [round, read] of (await Promise.all(reads)).entries()) assert(Array.from(read).every((value) => value === round));
  });

  it("past the end, before the beginning or of half an element are refused", () => {
    using arena = device.arena(MiB);
    const tensor = arena.tensor("i32", [10]);
    assertRefused("RKV_RANGE", () => tensor.write(new Int32Array(11)), "11", "10");
    assertRefused("RKV_RANGE", () => tensor.write(new Int32Array(1), -1));
    assertRefused("RKV_RANGE", () => tensor.write(new Uint8Array(3)), "3 bytes");
    assertRefused("RKV_RANGE", () => tensor.write(new Int32Array(1), 2 ** 31 - 1));
    const rows = arena.tensor("q8", [2, 32]);
    assertRefused("RKV_RANGE", () => rows.write(new Uint8Array(36), 16));
  });
});
