// The picture in README is what its script draws of the numbers beside it, and README's table says the same.
import { assertEquals, assertStringIncludes } from "@std/assert";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import process from "node:process";
import { describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import type { DemoTable } from "../lib/cli/demo.ts";

const read = (path: string) => readFileSync(new URL(`../${path}`, import.meta.url), "utf8");

describe("the picture of the demo", () => {
  const table = JSON.parse(read("bench/demo.json")) as DemoTable;

  it("is drawn from the committed numbers", () => {
    // A process of its own: Plot draws half a pixel lower where it finds a global `window` or `it`.
    const script = fileURLToPath(new URL("../bench/demo_picture.ts", import.meta.url));
    const run = "Deno" in globalThis ? ["run", "-A", script] : ["run", script];
    const drawn = execFileSync(process.execPath, run, { encoding: "utf8" });
    assertEquals(drawn, read("bench/demo.svg"));
    assertEquals(/NaN|Infinity|undefined/.test(drawn), false);
    assertEquals(drawn.match(/<circle/g)!.length, table.rows.length + 5); // and the legend
  });

  it("says what README's table says", () => {
    const lines = read("README.md").split("\n").filter((line) => /^\| (full cache|ClusterKV|sliding window)/.test(line));
    const cells = lines.map((line) => line.split("|").map((cell) => cell.trim()));
    assertEquals(cells.map((row) => Number(row[5])), table.rows.map(({ right }) => right));
    const kib = table.rows.map(({ bytesPerStep }) => Math.round(bytesPerStep / 1024).toLocaleString("en-US"));
    assertEquals(cells.map((row) => row[3]), kib);
    assertStringIncludes(read("README.md"), "(bench/demo.svg)");
  });
});
