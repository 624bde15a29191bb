// The stand-ins for @std: configuration alone names them, and they behave as the std does where the project relies on it.
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { parseArgs } from "@std/cli/parse-args";
import { readdirSync, readFileSync } from "node:fs";
import { describe, it } from "node:test";

const root = new URL("../../", import.meta.url);
const text = (path: string) => readFileSync(new URL(path, root), "utf8");

describe("the stand-ins for @std", () => {
  it("are named alike in the import map and in tsconfig.json", () => {
    const map = JSON.parse(text("lib/std/import_map.json")).imports as Record<string, string>;
    const paths = JSON.parse(text("tsconfig.json")).compilerOptions.paths as Record<string, string[]>;
    assertEquals(paths, Object.fromEntries(Object.entries(map).map(([name, file]) => [name, [file.replace("./", "./lib/std/")]])));
  });

  it("are never imported by path", () => {
    for (const folder of ["lib", "tests", "examples", "ffi"]) {
      for (const entry of readdirSync(new URL(folder, root), { recursive: true, encoding: "utf8" })) {
        if (!entry.endsWith(".ts")) continue;
        assert(!/from "[^"]*std\/(assert|parse_args)\.ts"/.test(text(`${folder}/${entry}`)), `${folder}/${entry}`);
      }
    }
  });
});

describe("parseArgs", () => {
  it("reads strings, switches, aliases, defaults, lists and positionals", () => {
    const args = ["run", "-m=a", "--list", "1", "--list=2", "--no-color", "--fast", "7"];
    const parsed = parseArgs(args, {
      string: ["model", "list"],
      boolean: ["fast", "slow", "color"],
      alias: { m: "model" },
      collect: ["list"],
      negatable: ["color"],
      default: { depth: 3 },
    });
    assertEquals({ ...parsed }, { _: ["run", 7], m: "a", model: "a", list: ["1", "2"], color: false, fast: true, slow: false, depth: 3 });
  });

  it("hands unknown options over", () => {
    const seen: string[] = [];
    const parsed = parseArgs(["--what", "x"], { string: ["model"], unknown: (name) => (seen.push(name), false) });
    assertEquals(seen, ["--what", "x"]);
    assertEquals({ ...parsed }, { _: [] });
  });
});

describe("assert", () => {
  it("throws when it should", async () => {
    assertThrows(() => assertEquals([1, { a: 2 }], [1, { a: 3 }]));
    assertThrows(() => assertThrows(() => {}), Error, "want it to throw");
    assertThrows(() => assertThrows(() => JSON.parse("{"), RangeError), Error, "is no RangeError");
    await assertRejects(() => assertRejects(() => Promise.resolve()), Error, "want it to throw");
  });
});
