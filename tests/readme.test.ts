// Every TypeScript block of README runs as it stands, in a process of its own.
import { assertEquals } from "@std/assert";
import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { after, describe, it } from "node:test";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const readme = readFileSync(join(root, "README.md"), "utf8");
const blocks = [...readme.matchAll(/```ts\n([\s\S]*?)```/g)].map(([, code]) => code);
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

describe("README", () => {
  for (const [i, code] of blocks.entries()) {
    it(`block ${i + 1} runs: ${code.split("\n", 1)[0]}`, async () => {
      const file = join(folder, `block${i + 1}.ts`);
      writeFileSync(file, code.includes("process.") ? `import process from "node:process";\n${code}` : code);
      assertEquals(await run(file), { code: 0, err: "" });
    });
  }

  it("has blocks", () => assertEquals(blocks.length >= 4, true));
});
