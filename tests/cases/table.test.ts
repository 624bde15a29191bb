/** The table itself: it covers every op, and its arguments are those of the header, name by name. */
import { assert, assertEquals } from "@std/assert";
import { readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { reference } from "../reference/mod.ts";
import { inPrecision } from "../reference/numbers.ts";
import { isTensor } from "./case.ts";
import { encode } from "./codec.ts";
import { faults, judged } from "./judge.ts";
import { table } from "./mod.ts";

const header = readFileSync(new URL("../../ffi/recallkv.h", import.meta.url), "utf8");
const camel = (name: string) => name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());

/** Names of an op's parameters as the header has them. */
function parameters(op: string): string[] {
  const snake = op.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  const prototype = new RegExp(`int32_t rkv_${snake}\\(([^)]*)\\)`).exec(header);
  assert(prototype, `rkv_${snake} is not in recallkv.h`);
  return prototype[1].split(",").map((parameter) => camel(/(\w+)\s*$/.exec(parameter)![1]));
}

describe("the case table", () => {
  it("has cases for every op of the header", () => {
    const ops = header.slice(header.indexOf("ops: decoder")).match(/int32_t rkv_\w+/g)!.map((name) =>
      camel(name.slice("int32_t rkv_".length))
    );
    assertEquals([...new Set(table.map(({ op }) => op))].sort(), ops.sort());
    assertEquals(Object.keys(reference).sort(), ops.sort());
  });

  it("names arguments as the header does, in its order", () => {
    for (const one of new Map(table.map((each) => [each.op, each])).values()) assertEquals(Object.keys(one.make()), parameters(one.op));
  });

  for (const one of new Map(table.map((each) => [each.op, each])).values()) {
    it(`judges ${one.op}: passes a naive computation, and sees a changed bit`, () => {
      const args = one.make();
      inPrecision("f32", () => (reference[one.op] as (...args: unknown[]) => void)(...Object.values(args)));
      const outcome = new Map(judged(args).map(({ name, tensor }) => [name, encode(tensor)]));
      assertEquals(faults(one, outcome), []);
      for (const [name, bytes] of outcome) { // one bit of every tensor, in its first number and in its last
        for (const i of [3, bytes.length - (isTensor(args[name]) ? 1 : 2)].filter((place) => place >= 0 && place < bytes.length)) {
          bytes[i] ^= 0x40;
          assertEquals(faults(one, outcome).length, 1, `byte ${i} of ${name} was changed and nothing said so`);
          bytes[i] ^= 0x40;
        }
      }
    });
  }

  it("names every case of an op differently", () => {
    assertEquals(new Set(table.map(({ op, name }) => `${op} ${name}`)).size, table.length);
  });
});
