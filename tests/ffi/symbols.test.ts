// The table of symbols says what the header says: names, order and kinds of all arguments, numbers of all constants.
import { assert, assertEquals } from "@std/assert";
import { readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { ABI, codes, symbols } from "../../ffi/symbols.ts";
import { opNames } from "../../lib/kernels.ts";
import { dtypes, weightTypes } from "../../lib/types.ts";

const read = (path: string) => readFileSync(new URL(`../../ffi/${path}`, import.meta.url), "utf8");
const header = read("recallkv.h").replace(/\/\*[\s\S]*?\*\//g, "");
const kinds: Record<string, string> = { int32_t: "i32", uint32_t: "u32", int64_t: "i64", float: "f32", double: "f64" };

function prototypes(): [string, string[]][] {
  return [...header.matchAll(/RKV_API int32_t (rkv_\w+)\(([^)]*)\);/g)].map(([, name, list]) => {
    const args = list.trim() === "void" ? [] : list.split(",").map((argument) => argument.trim());
    return [name, ["i32", ...args.map((argument) => argument.includes("*") ? "buf" : kinds[argument.split(" ")[0]])]];
  });
}

const camel = (name: string) => name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());

describe("the table of symbols", () => {
  it("is the header's, in its order", () => {
    const found = prototypes();
    assert(found.length > 30, "the header was not understood");
    const table: [string, string[]][] = Object.entries(symbols).map(([name, spec]) => [name, [...spec]]);
    assertEquals(table, found);
  });

  it("keeps 64-bit numbers out of ops, and ops to nine arguments", () => {
    for (const [name, [, ...args]] of prototypes()) {
      assert(args.length <= 9, name);
      if (opNames.includes(camel(name.slice(4)) as never)) assert(!args.includes("i64"), name);
    }
  });

  it("names every op that the op table has", () => {
    const table = /#define RKV_OPS\(X\)([\s\S]*?)\n\n/.exec(read("core/ops.h"))![1];
    const ops = [...table.matchAll(/X\((\w+)\)/g)].map(([, name]) => camel(name)).filter((name) => name !== "pack");
    assertEquals([...opNames].sort(), ops.sort());
  });

  it("numbers codes, dtypes and weight types as the header does", () => {
    const constants = new Map([...header.matchAll(/#define (RKV_\w+) \(?(-?\d+)\)?/g)].map(([, name, value]) => [name, Number(value)]));
    assertEquals(constants.get("RKV_ABI"), ABI);
    for (const [code, name] of Object.entries(codes)) assertEquals(constants.get(name), Number(code), name);
    for (const [place, name] of dtypes.entries()) assertEquals(constants.get(`RKV_${name.toUpperCase()}`), place, name);
    for (const [place, name] of weightTypes.entries()) assertEquals(constants.get(`RKV_WEIGHT_${name.toUpperCase()}`), place, name);
  });
});
