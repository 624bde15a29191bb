// A handle kept too long, or of another kind, is an error that says so, and never names something new.
import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "node:test";
import { native } from "../../ffi/native.ts";
import { open } from "../../lib/device.ts";
import { assertRefused } from "./support.ts";

const lib = native();
const device = await open("cpu", { threads: 1 });
const close = (handle: number) => lib.call("close", lib.fn.rkv_close(handle));

describe("handles", () => {
  it("closed twice are refused", () => {
    const arena = device.arena(1 << 16);
    close(arena.handle);
    assertRefused("RKV_STALE", () => close(arena.handle), "names nothing");
  });

  it("of an arena end with it", () => {
    const arena = device.arena(1 << 16);
    const tensor = arena.tensor("f32", [4]);
    arena[Symbol.dispose]();
    assertRefused("RKV_STALE", () => tensor.write(new Float32Array(4)), "tensor", String(tensor.handle));
    assertRefused("RKV_STALE", () => arena.tensor("f32", [4]), "arena");
  });

  it("of another kind are refused by name", () => {
    using arena = device.arena(1 << 16);
    const tensor = arena.tensor("i32", [4]);
    assertRefused("RKV_STALE", () => device.kernels.advance(tensor, arena as never), "active", "an arena", "a tensor");
    assertRefused("RKV_RANGE", () => close(tensor.handle), "ends with its arena");
  });

  it("are no small numbers: what is given by mistake names nothing", () => {
    const text = new Uint8Array(9);
    for (const handle of [0, 1, 2, -1, 2 ** 31 - 1]) {
      assertRefused("RKV_STALE", () => lib.call("describe", lib.fn.rkv_describe(handle, text, text.length)), "device");
    }
  });

  it("come back in another generation: an old one stays stale for thousands of rounds", async () => {
    const first = device.arena(4096).handle;
    close(first);
    const seen = new Set([first]);
    for (let round = 0; round < 5000; round++) {
      const arena = device.arena(4096);
      assert(!seen.has(arena.handle));
      seen.add(arena.handle);
      if (round % 500 === 0) await arena.fence(); // the queue has room again
      close(arena.handle);
    }
    assertRefused("RKV_STALE", () => lib.call("fence", lib.fn.rkv_fence(first)), "arena");
  });

  it("of another device are refused", async () => {
    using other = await open("cpu", { threads: 1 });
    using here = device.arena(1 << 16);
    using there = other.arena(1 << 16);
    const [position, active] = [here.tensor("i32", [2]), there.tensor("i32", [2])];
    assertRefused("RKV_DEVICE", () => device.kernels.advance(position, active), "active", "another device");
  });

  it("of a closed device are refused, but its arenas work to their end", async () => {
    const other = await open("cpu", { threads: 2 });
    using arena = other.arena(1 << 16);
    const tensor = arena.tensor("i32", [3]);
    await tensor.read();
    other[Symbol.dispose]();
    assertRefused("RKV_STALE", () => other.arena(4096), "device");
    tensor.write(Int32Array.of(1, 2, 3));
    assertEquals([...await tensor.read()], [1, 2, 3]);
  });
});

describe("a bound op", () => {
  const copy = device.kernels.copy as (...args: unknown[]) => void;

  it("refuses what a runtime would pass on as another number", () => {
    using arena = device.arena(1 << 16);
    const [to, from] = [arena.tensor("f32", [4]), arena.tensor("f32", [4])];
    for (const wrong of [1.5, NaN, 2 ** 31, -(2 ** 40)]) assertThrows(() => copy(to, wrong, from, 0, 1), RangeError, "argument 2");
    for (const wrong of [undefined, "1", true, {}]) assertThrows(() => copy(to, wrong, from, 0, 1), TypeError, "argument 2");
    assertThrows(() => copy(to, 0, from, 0), TypeError, "4 arguments, want 5");
    assertThrows(() => (device.kernels.group as (...args: unknown[]) => void)(to, to, to, null, 7), TypeError, "argument 5");
  });
});
