// The command line as a child process: what it prints, and with which exit code it ends.
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { fileURLToPath } from "node:url";

const main = fileURLToPath(new URL("../../lib/cli/main.ts", import.meta.url));
const map = fileURLToPath(new URL("../../lib/std/import_map.json", import.meta.url));
const runtime = "Deno" in globalThis ? ["run", "-A", "--no-check", `--import-map=${map}`] : ["run"];

function recallkv(args: string[], input = ""): Promise<{ code: number | null; out: string; err: string }> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [...runtime, main, ...args], { stdio: ["pipe", "pipe", "pipe"] });
    let [out, err] = ["", ""];
    child.stdout.on("data", (data) => out += data);
    child.stderr.on("data", (data) => err += data);
    child.on("close", (code) => resolve({ code, out, err }));
    child.stdin.end(input);
  });
}

describe("recallkv", () => {
  it("explains itself", async () => {
    const { code, out } = await recallkv(["--help"]);
    assertEquals(code, 0);
    for (const word of ["generate", "demo", "--budget", "--json"]) assertStringIncludes(out, word);
    assertEquals((await recallkv([])).code, 2);
    const version = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")).version;
    assertEquals((await recallkv(["--version"])).out, `${version}\n`);
  });

  it("generates one JSON document and nothing else on stdout", async () => {
    const { code, out, err } = await recallkv([
      "generate",
      "Once the storm",
      "--max-tokens",
      "5",
      "--json",
      "--kv",
      "clusterKV",
      "--budget",
      "16",
    ]);
    assertEquals(err, "");
    assertEquals(code, 0);
    const { text, tokens, finishReason, stats } = JSON.parse(out);
    assertEquals([typeof text, tokens.length, finishReason, stats.budget], ["string", 5, "length", 9]); // no more rows than there are tokens
  });

  it("reads the prompt from a file and from standard input", async () => {
    const folder = mkdtempSync(join(tmpdir(), "recallkv-cli-"));
    const file = join(folder, "prompt.txt");
    writeFileSync(file, "Once the storm");
    const [argument, fromFile, fromInput] = await Promise.all([
      recallkv(["generate", "Once the storm", "--max-tokens", "5"]),
      recallkv(["generate", "--file", file, "--max-tokens", "5"]),
      recallkv(["generate", "--max-tokens", "5"], "Once the storm"),
    ]);
    rmSync(folder, { recursive: true });
    assert(argument.out.length > 1);
    assertEquals([fromFile.out, fromInput.out], [argument.out, argument.out]);
  });

  it("names what it does not understand, with exit code 2", async () => {
    const wrong: [string[], string][] = [
      [["fly"], `unknown command "fly"`],
      [["generate", "x", "--modle", "y"], "unknown option --modle"],
      [["generate", "x", "--max-tokens", "many"], `--max-tokens is "many"`],
      [["generate", "x", "--kv", "magic"], `--kv is "magic"`],
      [["generate", "x", "y"], "found 2"],
      [["demo", "--documents", "0"], `--documents is "0"`],
    ];
    const results = await Promise.all(wrong.map(([args]) => recallkv(args)));
    for (const [i, { code, out, err }] of results.entries()) {
      assertStringIncludes(err, wrong[i][1]);
      assertEquals([code, out], [2, ""]);
    }
  });

  it("fails with exit code 1 and a sentence", async () => {
    const { code, err, out } = await recallkv(["generate", "x", "--model", "nowhere"]);
    assertStringIncludes(err, `Cannot load "nowhere"`);
    assertEquals([code, out], [1, ""]);
  });
});
