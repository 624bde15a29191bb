/** A row's bits do not depend on who shares its call: neither on the number of rows, nor on the other slots. */
import { assert, assertEquals, assertGreater } from "@std/assert";
import { describe, it } from "node:test";
import { type Device, isas, open } from "../../lib/device.ts";
import { type Args, type Case, isRows, isTensor } from "../cases/case.ts";
import { encode } from "../cases/codec.ts";
import { onDevice } from "../cases/device.ts";
import { judged, type Outcome } from "../cases/judge.ts";
import { table } from "../cases/mod.ts";
import { at, type Plain, range } from "../reference/plain.ts";

function run(device: Device, one: Case, args: Args): Promise<Outcome> {
  const op = device.kernels[one.op] as (...args: unknown[]) => void;
  return onDevice(device, args, (uploaded) => op.apply(device.kernels, uploaded));
}

/** Bytes of the tensors that a call was given. */
function before(args: Args): Outcome {
  return new Map(judged(args).map(({ name, tensor }) => [name, encode(tensor)]));
}

/** Writes what `later` changed into `merged`. Returns how many bytes that were. */
function overlay(merged: Outcome, old: Outcome, later: Outcome): number {
  let changed = 0;
  for (const [name, bytes] of later) {
    bytes.forEach((byte, i) => {
      if (byte === old.get(name)![i]) return;
      merged.get(name)![i] = byte;
      changed++;
    });
  }
  return changed;
}

function activeOf(args: Args): Plain | null {
  if (isTensor(args.active)) return args.active;
  return isRows(args.rows ?? null) && !(Number(args.slot) >= 0) ? (args.rows as unknown as { active: Plain }).active : null;
}

const activeIn = (active: Plain | null) => active ? range(active.shape[0]).filter((s) => active.data[s] !== 0) : [];
const shared = table.filter((one) => activeIn(activeOf(one.make())).length > 1);
/** `count` is not a number of independent rows here, or sums run over it. */
const uncounted = ["copy", "attentionMass", "keep", "compact", "pickRows", "channelMass"];
const counted = table.filter((one) => {
  const args = one.make();
  return Number(args.count) > 1 && activeOf(args) === null && !uncounted.includes(one.op);
});

for (const isa of isas()) {
  describe(`bits ${isa}`, () => {
    let device: Promise<Device> | undefined;
    const opened = () => device ??= open("cpu", { threads: 2, isa });

    for (const one of shared) {
      it(`${one.op} ${isa}: slots together and alone: ${one.name}`, async () => {
        const together = await run(await opened(), one, one.make());
        const old = before(one.make());
        const merged = before(one.make());
        for (const slot of activeIn(activeOf(one.make()))) {
          const args = one.make();
          const active = activeOf(args)!;
          active.data.forEach((_, s) => active.data[s] = s === slot ? 1 : 0);
          overlay(merged, before(args), await run(await opened(), one, args));
        }
        assertEquals(merged, together);
        assert([...together].some(([name, bytes]) => bytes.some((byte, i) => byte !== old.get(name)![i])));
      });
    }

    for (const one of counted) {
      it(`${one.op} ${isa}: rows in calls of another length: ${one.name}`, async () => {
        const together = await run(await opened(), one, one.make());
        const count = Number(one.make().count);
        for (const fewer of new Set([1, count >> 1, count - 1])) {
          const args: Args = { ...one.make(), count: fewer };
          if (["attendChunk", "projectRows"].includes(one.op) && isRows(args.rows)) {
            at(args.rows.rowEnd, args.rows.layer).forEach((_, s, ends) => ends[s] -= count - fewer);
          }
          const merged = new Map([...together].map(([name, bytes]) => [name, bytes.slice()]));
          const later = new Map(await run(await opened(), one, args));
          later.delete("rows.rowEnd"); // says how many rows there are
          assertGreater(overlay(merged, before(args), later), 0);
          assertEquals(merged, together, `${fewer} rows of ${count}`);
        }
      });
    }
  });
}
