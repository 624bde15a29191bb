// A recorded step is the same ops in the same order, walked by native code; what could not be repeated is refused while recording.
import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "node:test";
import { native } from "../../ffi/native.ts";
import { type Arena, open } from "../../lib/device.ts";
import type { Tensor } from "../../lib/tensor.ts";
import { assertRefused } from "./support.ts";

const device = await open("cpu", { threads: 2 });
const k = device.kernels;
const lib = native();
const MiB = 1 << 20;

/** A step over a few tensors: position moves, rotations follow it, and are gathered into a history. */
function stepOf(arena: Arena): { step: () => void; results: Tensor[] } {
  const [position, active] = [arena.tensor("i32", [3]), arena.tensor("i32", [3])];
  const frequencies = arena.tensor("f32", [8]);
  const [rotations, history] = [arena.tensor("f32", [3, 2, 8]), arena.tensor("f32", [6, 2, 8])];
  active.write(Int32Array.of(1, 0, 1));
  frequencies.write(Float32Array.from({ length: 8 }, (_, i) => 1 / (i + 1)));
  const step = () => {
    k.advance(position, active);
    k.rotations(rotations, position, frequencies, 1, 3);
    k.copy(history, 0, rotations, 0, 6);
  };
  return { step, results: [position, rotations, history] };
}

describe("a recorded step", () => {
  it("runs nothing while it is recorded, and replays bit for bit what eager ops do", async () => {
    using eager = device.arena(MiB);
    using recorded = device.arena(MiB);
    const [one, two] = [stepOf(eager), stepOf(recorded)];
    const tape = recorded.record(two.step);
    assertEquals([...await two.results[0].read()], [0, 0, 0]);
    for (let step = 0; step < 100; step++) {
      one.step();
      tape.replay();
    }
    for (const [i, result] of one.results.entries()) assertEquals(await two.results[i].read(), await result.read());
    assertEquals([...await two.results[0].read()], [100, 0, 100]);
  });

  it("refuses what waits, allocates or changes from replay to replay", () => {
    using arena = device.arena(64 * MiB);
    const tensor = arena.tensor("i32", [4]);
    const large = arena.tensor("f32", [1, 1, 100_000, 8]);
    const [order, offsets, labels] = [arena.tensor("i32", [1, 1, 16]), arena.tensor("i32", [1, 1, 3]), arena.tensor("i32", [1, 1, 16])];
    const tape = arena.record(() => {});
    const cold: Record<string, () => unknown> = {
      tensor: () => arena.tensor("i32", [1]),
      commit: () => large.commit(1),
      release: () => large.release(0, 0),
      write: () => tensor.write(new Int32Array(4)),
      read: () => lib.call("read", lib.fn.rkv_read(tensor.handle, 0, 4)),
      fence: () => lib.call("fence", lib.fn.rkv_fence(arena.handle)),
      record: () => arena.record(() => {}),
      replay: () => tape.replay(),
      close: () => lib.call("close", lib.fn.rkv_close(arena.handle)),
      group: () => k.group(order, offsets, labels, null, Int32Array.of(0, 0, 16, 0, 2)),
    };
    arena.record(() => {
      for (const call of Object.values(cold)) assertRefused("RKV_RECORDING", call, "recorded");
    });
    assertRefused("RKV_RECORDING", () => lib.call("recordEnd", lib.fn.rkv_record_end(arena.handle)), "none was begun");
    tensor.write(new Int32Array(4)); // and allows all of it again
  });

  it("takes up no op that was refused", async () => {
    using arena = device.arena(MiB);
    const { step, results: [position] } = stepOf(arena);
    const wrong = arena.tensor("f32", [3]);
    const tape = arena.record(() => {
      step();
      assertThrows(() => k.advance(position, wrong), TypeError);
    });
    tape.replay();
    assertEquals([...await position.read()], [1, 0, 1]);
  });

  it("of one arena leaves ops of another to run at once", async () => {
    using one = device.arena(MiB);
    using other = device.arena(MiB);
    const [here, there] = [stepOf(one), stepOf(other)];
    one.record(() => {
      here.step();
      there.step();
    });
    assertEquals([...await there.results[0].read()], [1, 0, 1]);
    assertEquals([...await here.results[0].read()], [0, 0, 0]);
  });

  it("is refused once an arena that its ops use was closed, and once it was closed itself", async () => {
    using arena = device.arena(MiB);
    const other = device.arena(MiB);
    const [to, from] = [arena.tensor("i32", [4]), other.tensor("i32", [4])];
    from.write(Int32Array.of(1, 2, 3, 4));
    const handle = (tape: unknown) => (tape as { handle: number }).handle;
    const tape = arena.record(() => k.copy(to, 0, from, 0, 4));
    tape.replay();
    assertEquals([...await to.read()], [1, 2, 3, 4]);
    other[Symbol.dispose]();
    assertRefused("RKV_STALE", () => tape.replay(), "replay", "arena");
    lib.call("close", lib.fn.rkv_close(handle(tape)));
    assertRefused("RKV_STALE", () => tape.replay(), "tape");
    assertEquals(await arena.fence(), true);
  });

  it("is cut by a cancel between its ops", async () => {
    using arena = device.arena(MiB);
    const { step, results: [position] } = stepOf(arena);
    const tape = arena.record(step);
    arena.cancel(true);
    tape.replay();
    assertEquals(await arena.fence(), false);
    arena.cancel(false);
    tape.replay();
    assertEquals([...await position.read()], [1, 0, 1]);
  });
});
