// Every TypeScript block of README and of docstrings runs as it stands, in a process of its own.
import { assertEquals } from "@std/assert";
import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { after, describe, it } from "node:test";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const read = (file: string) => readFileSync(join(root, file), "utf8");
const blocks = [...read("README.md").matchAll(/```ts\n([\s\S]*?)```/g)].map(([, code]) => code);
const sources = readdirSync(join(root, "lib"), { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".ts")).sort();
const shown = sources.flatMap((name) => [...read(`lib/${name}`).matchAll(/^ \* ```ts\n([\s\S]*?)^ \* ```/gm)].map(([, code]) => code))
  .map((code) => code.replace(/^ \* ?/gm, ""));
mkdirSync(join(root, "zig-out"), { recursive: true });
const folder = mkdtempSync(join(root, "zig-out", "readme-")); // inside the package, where "recallkv" is its own name
after(() => rmSync(folder, { recursive: true }));

function run(file: string): Promise<{ code: number | null; err: string }> {
  const args = "Deno" in globalThis ? ["run", "-A", "--no-check", file] : ["run", file];
  return new Promise((resolve) => {
    const child = spawn(process.execPath, args, { cwd: folder });
    let err = "";
    child.stderr.on("data", (data) => err += data);
    child.stdout.resume();
    child.on("close", (code) => resolve({ code, err }));
  });
}

describe("README and docstrings", () => {
  for (const [i, code] of [...blocks, ...shown].entries()) {
    it(`block ${i + 1} runs: ${code.split("\n", 1)[0]}`, async () => {
      const file = join(folder, `block${i + 1}.ts`);
      writeFileSync(file, code.includes("process.") ? `import process from "node:process";\n${code}` : code);
      assertEquals(await run(file), { code: 0, err: "" });
    });
  }

  it("have blocks", () => assertEquals([blocks.length >= 4, shown.length >= 2], [true, true]));
});
