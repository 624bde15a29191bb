/** Ops refuse what does not fit, at once and in a full sentence: wrong dtypes, wrong shapes, tensors that were closed. */
import { assertEquals, assertInstanceOf, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { describe, it } from "node:test";
import { open } from "../../lib/device.ts";
import { RecallError } from "../../lib/errors.ts";
import { type Args, type Case, isRows, isTensor } from "../cases/case.ts";
import { onDevice } from "../cases/device.ts";
import { table } from "../cases/mod.ts";
import { STEP } from "../reference/plain.ts";

/** One case of each op, with every optional tensor given where there is such a case. */
const samples = new Map<string, Case>();
for (const one of table) {
  const given = (args: Args) => Object.values(args).filter((arg) => arg !== null).length;
  const held = samples.get(one.op);
  if (!held || given(one.make()) > given(held.make())) samples.set(one.op, one);
}

const SENTENCE = /^Cannot .+: .+/;
const device = await open("cpu", { threads: 1 });

/** Runs a case with one argument replaced; returns the refusal. */
async function refused(
  one: Case,
  name: string,
  replacement: (arena: import("../../lib/device.ts").Arena, shape: readonly number[]) => unknown,
): Promise<Error & { code: string }> {
  const args = one.make();
  let refusal: unknown;
  await onDevice(device, args, (uploaded, { arena }) => {
    const place = Object.keys(args).indexOf(name);
    const arg = args[name];
    uploaded[place] = replacement(arena, isTensor(arg) ? arg.shape : []);
    refusal = assertThrows(() => (device.kernels[one.op] as (...args: unknown[]) => void).apply(device.kernels, uploaded));
  });
  assertInstanceOf(refusal, Error);
  assertMatch(refusal.message, SENTENCE);
  return refusal as Error & { code: string };
}

/** "tensor" of permuteRows and pickRows may have any dtype. */
const anyDtype = (one: Case, name: string) => ["permuteRows", "pickRows"].includes(one.op) && name === "tensor";

describe("ops refuse", () => {
  for (const one of samples.values()) {
    for (const [name, arg] of Object.entries(one.make())) {
      if (isTensor(arg)) {
        if (!anyDtype(one, name)) {
          it(`${one.op}: ${name} of another dtype`, async () => {
            const other = arg.dtype === "i32" ? "f32" : "i32";
            assertEquals((await refused(one, name, (arena, shape) => arena.tensor(other, shape))).code, "RKV_DTYPE");
          });
        }
        if (name !== "work") {
          it(`${one.op}: ${name} with a dimension too many`, async () => {
            assertEquals(
              (await refused(one, name, (arena, shape) => arena.tensor(arg.dtype, shape.length > 3 ? shape.slice(1) : [...shape, 1, 1])))
                .code,
              "RKV_SHAPE",
            );
          });
        } else if (arg.data.length > 1) {
          it(`${one.op}: work a float too short`, async () => {
            assertEquals((await refused(one, name, (arena, [floats]) => arena.tensor("f32", [floats - 1]))).code, "RKV_SHAPE");
          });
        }
      }
      if (isTensor(arg) || isRows(arg)) {
        it(`${one.op}: ${name} that was closed`, async () => {
          const stale = await refused(one, name, () => {
            const elsewhere = device.arena(1 << 20);
            const tensor = elsewhere.tensor("f32", [1]);
            elsewhere[Symbol.dispose]();
            return tensor;
          });
          assertEquals(stale.code, "RKV_STALE");
        });
      }
    }
  }

  it("attnIn: a row past capacity poisons the arena, and says so", async () => {
    const one = table.find(({ op, name }) => op === "attnIn" && name.startsWith(`slot ${STEP}`))!;
    const args = one.make();
    const refusal = await assertRejects(
      () =>
        onDevice(device, args, (uploaded) => {
          for (let step = 0; step < 4; step++) (device.kernels.attnIn as (...args: unknown[]) => void).apply(device.kernels, uploaded);
        }),
      RecallError,
    );
    assertEquals(refusal.code, "RKV_POISONED");
    assertMatch(refusal.message, /attnIn|attn_in/);
  });
});
