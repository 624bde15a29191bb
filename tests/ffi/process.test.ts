// A process that uses the library ends as any other: cleanly, with jobs in flight, however often; and Deno needs no further permission.
import { assertEquals, assertLess, assertStringIncludes } from "@std/assert";
import { spawn } from "node:child_process";
import { describe, it } from "node:test";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));
const DENO = ["run", "--no-prompt", "--no-check", "--import-map=lib/std/import_map.json", "--allow-ffi", "--allow-read"];

interface Ended {
  code: number | null;
  signal: string | null;
  text: string;
  milliseconds: number;
}

/** The tests run under both runtimes: each starts its own. */
const runtime = "bun" in process.versions ? "bun" : "deno";

/** Runs child.ts to its end; `library`: what RECALLKV_LIB says. */
function child(way: string, library?: string): Promise<Ended> {
  const begin = performance.now();
  const flags = runtime === "bun" ? ["run"] : library ? [...DENO, "--allow-env=RECALLKV_LIB"] : DENO;
  const env = library ? { ...process.env, RECALLKV_LIB: library } : process.env;
  const started = spawn("sh", ["scripts/tool.sh", runtime, ...flags, "tests/ffi/child.ts", way], { cwd: root, env });
  let text = "";
  started.stdout.on("data", (data) => text += data);
  started.stderr.on("data", (data) => text += data);
  return new Promise((resolve) =>
    started.on("close", (code, signal) => resolve({ code, signal, text, milliseconds: performance.now() - begin }))
  );
}

describe(`a ${runtime} process with jobs in flight`, () => {
  for (const [way, times, wanted] of [["ends", 4, 0], ["exits", 4, 0], ["throws", 3, 1], ["closes", 2, 0]] as const) {
    it(`that ${way}, ${times} times`, async () => {
      for (let i = 0; i < times; i++) {
        const { code, signal, text } = await child(way);
        assertEquals({ code, signal }, { code: wanted, signal: null }, text);
        if (way === "throws") assertStringIncludes(text, "on purpose");
      }
    });
  }

  it("that awaits them lives until they have come", async () => {
    const { code, text, milliseconds } = await child("awaits");
    assertEquals({ code, text }, { code: 0, text: "fence false\n" });
    assertLess(milliseconds, 10_000);
  });
});

describe("RECALLKV_LIB", () => {
  const cases = { "names no file": "no/such/library.so", "names no library": "ffi/recallkv.h" };
  for (const [name, library] of Object.entries(cases)) {
    it(`that ${name} is refused by name, and no other library is taken instead`, async () => {
      const { code, text } = await child("ends", join(root, library));
      assertEquals(code, 1);
      assertStringIncludes(text, "RecallError: Cannot load recallkv: ");
      assertStringIncludes(text, library);
    });
  }
});
