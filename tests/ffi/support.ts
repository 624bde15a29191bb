/** What the tests of the boundary share: refusals by their code, and work that takes long. */
import { assertEquals, assertMatch, assertStringIncludes, assertThrows } from "@std/assert";
import type { Arena, Device } from "../../lib/device.ts";

/** A call is refused with a code ("RKV_STALE"), in a sentence that has all of `words`; returns the sentence. */
export function assertRefused(code: string, call: () => unknown, ...words: string[]): string {
  const error = assertThrows(call) as Error & { code?: string };
  assertEquals(error.code, code, error.message);
  assertMatch(error.message, /^Cannot .+: ./);
  for (const word of words) assertStringIncludes(error.message, word);
  return error.message;
}

/** Milliseconds that work takes. */
export async function milliseconds(work: () => Promise<unknown>): Promise<number> {
  const begin = performance.now();
  await work();
  return performance.now() - begin;
}

/** An op of some milliseconds, to be enqueued again and again: cosines and sines of 8,192 positions. `each`: milliseconds it takes. */
export async function slowOp(device: Device, arena: Arena): Promise<{ enqueue(): void; each: number }> {
  const rows = 8192;
  const rotations = arena.tensor("f32", [rows, 2, 32]);
  rotations.commit(2);
  const position = arena.tensor("i32", [rows]);
  position.write(Int32Array.from({ length: rows }, (_, i) => i));
  const frequencies = arena.tensor("f32", [32]);
  frequencies.write(new Float32Array(32).fill(0.7));
  const enqueue = () => device.kernels.rotations(rotations, position, frequencies, 1, rows);
  enqueue();
  await arena.fence();
  const tries = 5;
  const each = await milliseconds(() => {
    for (let i = 0; i < tries; i++) enqueue();
    return arena.fence();
  }) / tries;
  return { enqueue, each };
}
