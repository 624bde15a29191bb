/** The case table on the CPU device, under every instruction set of this machine, against the reference. */
import { assertEquals } from "@std/assert";
import { describe, it } from "node:test";
import { type Device, isas, open } from "../../lib/device.ts";
import { runCase } from "../cases/device.ts";
import { faults } from "../cases/judge.ts";
import { table } from "../cases/mod.ts";

const THREADS = 3;

for (const isa of isas()) {
  describe(`ops ${isa}`, () => {
    let devices: Promise<[Device, Device]> | undefined;
    const opened = () => devices ??= Promise.all([open("cpu", { threads: THREADS, isa }), open("cpu", { threads: 1, isa })]);

    for (const one of table) {
      it(`${one.op} ${isa}: ${one.name}`, async () => {
        const [many, single] = await opened();
        const outcome = await runCase(many, one);
        assertEquals(faults(one, outcome), []);
        const alone = await runCase(single, one);
        for (const [name, bytes] of outcome) assertEquals(alone.get(name), bytes, `${name}: 1 thread and ${THREADS} differ`);
      });
    }
  });
}
