// The command line as a child process: what it prints, and with which exit code it ends.
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { printedIn, recallkv } from "./child.ts";
import { fileURLToPath } from "node:url";

const nano = fileURLToPath(new URL("../../models/nano", import.meta.url));

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

  it("says what an answer took where it is asked to, and not on stdout", async () => {
    const args = ["generate", "Once the storm", "--max-tokens", "5", "--kv", "clusterKV"];
    const [quiet, asked] = await Promise.all([recallkv(args), recallkv([...args, "--stats"])]);
    assertEquals([quiet.err, asked.out], ["", quiet.out]);
    for (const words of ["5 written", "rows a step", "sink", "select", "attnOut"]) assertStringIncludes(asked.err, words);
  });

  it("names what it does not understand, with exit code 2", async () => {
    const wrong: [string[], string][] = [
      [["fly"], `unknown command "fly"`],
      [["generate", "x", "--modle", "y"], "unknown option --modle, want --model"],
      [["generat", "x"], `unknown command "generat", want generate`],
      [["generate", "x", "--temperature", "NaN"], `--temperature is "NaN", want a number from 0 to 1000`],
      [["generate", "x", "--top-p", "2"], `--top-p is "2"`],
      [["chat", "hello"], `chat takes no "hello"`],
      [["generate", "x", "--max-tokens", "many"], `--max-tokens is "many"`],
      [["generate", "x", "--kv", "magic"], `--kv is "magic"`],
      [["generate", "x", "y"], "found 2"],
      [["demo", "--documents", "0"], `--documents is "0"`],
      [["generate", "--file"], "--file wants a value"],
      [["generate", "x", "--stop", ""], "--stop wants a value"],
      [["pull", "x"], `pull wants OWNER/NAME, found "x"`],
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
    const file = await recallkv(["generate", "--file", "nowhere.txt"]);
    assertEquals([file.code, file.err], [1, `recallkv: Cannot read "nowhere.txt": there is no such file\n`]);
  });

  it("ends quietly when nobody reads on", async () => {
    const args = ["generate", "Once the storm", "--model", nano, "--max-tokens", "2000", "--temperature", "1", "--stop", "never said"];
    const { code, err } = await recallkv(args, "", undefined, 20);
    assertEquals([code, err], [0, ""]);
  });

  it("draws the same text from the same seed", async () => {
    const args = ["generate", "Once the storm", "--model", nano, "--max-tokens", "12", "--temperature", "1", "--top-k", "50"];
    const [a, b, c] = await Promise.all(["4", "4", "5"].map((seed) => recallkv([...args, "--seed", seed])));
    assertEquals([a.code, a.err], [0, ""]);
    assertEquals(b.out, a.out);
    assert(c.out !== a.out);
  });

  it("draws the same tokens in Bun and in Deno", async () => {
    const args = [
      "generate",
      "Once the storm",
      "--model",
      nano,
      "--max-tokens",
      "40",
      "--temperature",
      "1.2",
      "--top-p",
      "0.95",
      "--seed",
      "9",
    ];
    const penalties = ["--repetition-penalty", "1.1", "--kv", "clusterKV", "--budget", "8", "--json"];
    const [bun, deno] = await Promise.all((["bun", "deno"] as const).map((runtime) => printedIn(runtime, [...args, ...penalties])));
    assertEquals(JSON.parse(bun).tokens, JSON.parse(deno).tokens);
    assert(JSON.parse(bun).tokens.length > 0);
  });

  it("talks, a line at a time, and goes on with what was saved", async () => {
    const folder = mkdtempSync(join(tmpdir(), "recallkv-chat-"));
    const saved = join(folder, "talk.recall");
    const args = ["chat", "--model", nano, "--max-tokens", "14"];
    const first = await recallkv([...args, "--system", "Clara lives in Porto.", "--save", saved], "Where does Clara live?\n");
    assertEquals([first.code, first.err], [0, ""]);
    assertStringIncludes(first.out, "Porto");
    const whole = await recallkv([...args, "--system", "Clara lives in Porto.", "--json"], "Where does Clara live?\n\nWhy?\n");
    const rest = await recallkv([...args, "--load", saved, "--json"], "Why?");
    assertEquals(JSON.parse(rest.out).messages, JSON.parse(whole.out).messages);
    assert(JSON.parse(rest.out).stats[0].readTokens < JSON.parse(rest.out).stats[0].promptTokens / 2);
    rmSync(folder, { recursive: true });
  });

  it("ends the answer at Ctrl-C, with what there is of it", async () => {
    const args = ["generate", "Once the storm", "--model", nano, "--max-tokens", "200000", "--temperature", "1", "--stop", "never said"];
    const { code, out } = await recallkv([...args, "--capacity", "210000"], "", (printed) => printed.length > 20);
    assertEquals(code, 0);
    assert(out.length > 20 && out.endsWith("\n"));
  });
});
