// The clock of an arena: what ran, how often and how long, and nothing while it stands.
import { assert, assertEquals } from "@std/assert";
import { describe, it } from "node:test";
import { open } from "../../lib/device.ts";
import { slowOp } from "./support.ts";

describe("an arena's clock", () => {
  it("adds up runs and time of each op while it goes, eager and replayed", async () => {
    using device = await open("cpu", { threads: 1 });
    using arena = device.arena(64 << 20);
    const { enqueue } = await slowOp(device, arena);
    assertEquals(arena.times(), {});
    arena.clock(true);
    const began = performance.now();
    for (let i = 0; i < 3; i++) enqueue();
    const tape = arena.record(() => {
      enqueue();
      enqueue();
    });
    tape.replay();
    await arena.fence();
    const wall = (performance.now() - began) / 1000;
    arena.clock(false);
    enqueue();
    await arena.fence();
    const times = arena.times();
    assertEquals(Object.keys(times), ["rotations"]);
    assertEquals(times.rotations.runs, 5);
    assert(times.rotations.seconds > wall / 4 && times.rotations.seconds <= wall, `${times.rotations.seconds} s of ${wall} s`);
  });
});
