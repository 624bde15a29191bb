// Ops run in call order beside the event loop; cancelling, a fault and a full queue are told, and leave nothing half known.
import { assert, assertEquals, assertGreater, assertGreaterOrEqual, assertLess, assertRejects } from "@std/assert";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { describe, it } from "node:test";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { native } from "../../ffi/native.ts";
import { type Arena, open } from "../../lib/device.ts";
import { RecallError } from "../../lib/errors.ts";
import { STEP } from "../../lib/kernels.ts";
import { assertRefused, milliseconds, slowOp } from "./support.ts";

const device = await open("cpu", { threads: 2 });
const k = device.kernels;
const MiB = 1 << 20;

describe("the queue", () => {
  it("runs ops in call order", async () => {
    using arena = device.arena(MiB);
    const [a, b] = [arena.tensor("i32", [1000]), arena.tensor("i32", [1000])];
    a.write(Int32Array.from({ length: 1000 }, (_, i) => i));
    for (let i = 0; i < 999; i++) { // each needs what the one before left
      k.copy(b, i, a, i, 1);
      k.copy(a, i + 1, b, i, 1);
    }
    assertEquals(new Set(await a.read()), new Set([0]));
  });

  it("finishes fences in order", async () => {
    using arena = device.arena(64 * MiB);
    const slow = await slowOp(device, arena);
    const order: number[] = [];
    const fences = Array.from({ length: 100 }, (_, i) => {
      if (i % 10 === 0) slow.enqueue();
      return arena.fence().then(() => order.push(i));
    });
    await Promise.all(fences);
    assertEquals(order, Array.from({ length: 100 }, (_, i) => i));
  });

  it("lets timers tick while it works: at least 20 of 1 ms in 2 s", async () => {
    using arena = device.arena(64 * MiB);
    const slow = await slowOp(device, arena);
    let ticks = 0;
    const timer = setInterval(() => ticks++, 1);
    for (let i = 0; i < Math.ceil(2000 / slow.each); i++) slow.enqueue();
    const took = await milliseconds(() => arena.fence());
    clearInterval(timer);
    assertGreater(took, 500, "the work was too short to tell");
    assertGreaterOrEqual(ticks, 20);
  });

  it("refuses ops when it is full, takes a fence even then, and goes on", async () => {
    using arena = device.arena(64 * MiB);
    const slow = await slowOp(device, arena);
    const [position, active] = [arena.tensor("i32", [1]), arena.tensor("i32", [1])];
    active.write(Int32Array.of(1));
    for (let i = 0; i < Math.ceil(200 / slow.each); i++) slow.enqueue();
    let taken = 0;
    assertRefused(
      "RKV_LIMIT",
      () => {
        for (; taken < 20_000; taken++) k.advance(position, active);
      },
      "advance",
      "wait in the queue",
    );
    assertGreater(taken, 7000);
    await arena.fence();
    k.advance(position, active);
    assertEquals([...await position.read()], [taken + 1]);
  });

  it("does not run an op that was refused", async () => {
    using arena = device.arena(MiB);
    const [position, active] = [arena.tensor("i32", [2]), arena.tensor("i32", [3])];
    assertRefused("RKV_SHAPE", () => k.advance(position, active), "active is [3]", "want [2]");
    assertEquals([...await position.read()], [0, 0]);
  });
});

describe("a cancel", () => {
  it("ends the work within 200 ms, and fences say so until it is taken back", async () => {
    using arena = device.arena(64 * MiB);
    const slow = await slowOp(device, arena);
    for (let i = 0; i < Math.ceil(3000 / slow.each); i++) slow.enqueue();
    const fence = arena.fence();
    arena.cancel(true);
    assertLess(await milliseconds(() => fence), 200);
    assertEquals(await fence, false);
    await assertRejects(() => arena.tensor("i32", [1]).read(), RecallError, "cancelled");
    arena.cancel(false);
    assertEquals(await arena.fence(), true);
  });

  it("ends one long op between its pieces", async () => {
    using arena = device.arena(256 * MiB);
    const [rows, half] = [65536, 128];
    const rotations = arena.tensor("f32", [rows, 2, half]);
    rotations.commit(2);
    const [position, frequencies] = [arena.tensor("i32", [rows]), arena.tensor("f32", [half])];
    const run = () => {
      k.rotations(rotations, position, frequencies, 1, rows);
      return arena.fence();
    };
    const whole = await milliseconds(run);
    const cut = await milliseconds(async () => {
      const fence = run();
      arena.cancel(true);
      assertEquals(await fence, false);
    });
    assertLess(cut, whole / 4);
  });

  it("that is taken back at once is still told by the next fence, when it cut something", async () => {
    using arena = device.arena(64 * MiB);
    const slow = await slowOp(device, arena);
    const [position, active] = [arena.tensor("i32", [1]), arena.tensor("i32", [1])];
    active.write(Int32Array.of(1));
    for (let i = 0; i < Math.ceil(100 / slow.each); i++) slow.enqueue();
    arena.cancel(true);
    for (const end = performance.now() + 50; performance.now() < end;); // the queue meets the flag while this thread is busy
    arena.cancel(false);
    assertEquals(await arena.fence(), false);
    k.advance(position, active);
    assertEquals(await arena.fence(), true);
    assertEquals([...await position.read()], [1]);
  });

  it("leaves the other arenas of the device alone", async () => {
    using one = device.arena(MiB);
    using other = device.arena(MiB);
    const [position, active] = [other.tensor("i32", [1]), other.tensor("i32", [1])];
    active.write(Int32Array.of(1));
    one.cancel(true);
    k.advance(position, active);
    assertEquals([...await position.read()], [1]);
    assertEquals(await one.fence(), false);
  });
});

describe("a fault", () => {
  it("poisons its arena: later ops are skipped, every fence says which op failed and why", async () => {
    using arena = device.arena(64 * MiB);
    const append = await appendRow(arena, 3);
    const [position, active] = [arena.tensor("i32", [1]), arena.tensor("i32", [1])];
    active.write(Int32Array.of(1));
    for (let row = 0; row < 3; row++) append();
    assertEquals(await arena.fence(), true);
    append();
    k.advance(position, active);
    for (let again = 0; again < 2; again++) {
      const fault = await assertRejects(() => arena.fence(), RecallError, "capacity");
      assertEquals(fault.code, "RKV_POISONED");
    }
    await assertRejects(() => position.read(), RecallError, "attn_in");
    assertRefused("RKV_POISONED", () => arena.record(() => {}), "capacity");
    using other = device.arena(MiB);
    assertEquals(await other.fence(), true);
  });
});

describe("a job", () => {
  it("is taken once, and not before it has arrived", async () => {
    using arena = device.arena(64 * MiB);
    const lib = native();
    const slow = await slowOp(device, arena);
    const tensor = arena.tensor("i32", [4]);
    tensor.write(Int32Array.of(4, 3, 2, 1));
    for (let i = 0; i < Math.ceil(50 / slow.each); i++) slow.enqueue();
    const job = lib.call("read", lib.fn.rkv_read(tensor.handle, 0, 4));
    const bytes = new Uint8Array(16);
    const take = () => lib.call("take", lib.fn.rkv_take(job, bytes, bytes.length));
    assertRefused("RKV_RANGE", take, "not arrived");
    assertEquals(await lib.finished(device.handle, job), 0);
    assertRefused("RKV_RANGE", () => lib.call("take", lib.fn.rkv_take(job, bytes, 15)), "16", "15");
    assertEquals(take(), 16);
    assertEquals([...new Int32Array(bytes.buffer)], [4, 3, 2, 1]);
    assertRefused("RKV_STALE", take);
  });

  it("of an arena that was closed meanwhile still arrives", async () => {
    const arena = device.arena(64 * MiB);
    const slow = await slowOp(device, arena);
    for (let i = 0; i < 10; i++) slow.enqueue();
    const tensor = arena.tensor("i32", [2]);
    tensor.write(Int32Array.of(5, 6));
    const [read, fence] = [tensor.read(), arena.fence()];
    arena[Symbol.dispose]();
    assertEquals([...await read], [5, 6]);
    assertEquals(await fence, true);
  });

  it("of a device that was closed meanwhile still arrives", async () => {
    for (let round = 0; round < 20; round++) {
      const own = await open("cpu", { threads: 2 });
      const arena = own.arena(MiB);
      const fence = arena.fence();
      arena[Symbol.dispose]();
      own[Symbol.dispose]();
      assertEquals(await fence, true);
    }
  });

  it("arrives, however many there are", async () => {
    using arena = device.arena(MiB);
    const tensor = arena.tensor("i32", [100]);
    for (let round = 0; round < 10; round++) {
      const all = await Promise.all(Array.from({ length: 400 }, (_, i) => i % 2 ? arena.fence() : tensor.read()));
      assert(all.every((result) => result === true || (result as Int32Array).length === 100));
    }
  });
});

/** Appends a row to KV rows of a capacity: attnIn over a layer of zeros. */
async function appendRow(arena: Arena, capacity: number): Promise<() => void> {
  const [hidden, heads, headDim] = [8, 1, 4];
  const folder = await mkdtemp(join(tmpdir(), "recallkv-"));
  const path = join(folder, "zeros");
  await writeFile(path, new Uint8Array(4096));
  const file = device.file(path);
  const weight = (rows: number, cols: number) => arena.weight(file, { offset: 0, type: "f32", rows, cols, rotated: 0 });
  const [norm, square] = [weight(1, hidden), weight(heads * headDim, hidden)];
  const layer = arena.layer(
    {
      attnNorm: norm,
      q: square,
      k: square,
      v: square,
      o: weight(hidden, heads * headDim),
      ffnNorm: norm,
      gate: square,
      up: square,
      down: weight(hidden, headDim),
    },
    { heads, kvHeads: 1, headDim, window: 0, ropeDim: headDim },
    { eps: 1e-5, scale: 1, softCap: 0 },
  );
  await arena.fence();
  file[Symbol.dispose]();
  await rm(folder, { recursive: true });
  const i32 = (...shape: number[]) => arena.tensor("i32", shape);
  const f32 = (...shape: number[]) => arena.tensor("f32", shape);
  const active = i32(1);
  active.write(Int32Array.of(1));
  const planes = [1, 1, capacity, headDim];
  const rows = arena.rows([f32(...planes), f32(...planes), i32(1, 1, capacity), i32(1, 1), i32(1, 1), active, i32(1, 1, 8)], 0);
  const [q, x, rotations, position, work] = [
    f32(1, heads, headDim),
    f32(1, hidden),
    f32(1, 2, headDim / 2),
    i32(1),
    f32(hidden + 2 * headDim),
  ];
  return () => k.attnIn(q, rows, x, layer, rotations, position, work, STEP, 1);
}
