// recallkv inspect: what a file is, from its headers alone.
import { assertEquals, assertGreater, assertMatch, assertRejects } from "@std/assert";
import { readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { inspect } from "../../lib/cli/inspect_command.ts";
import { FormatError } from "../../lib/formats/checkpoint.ts";
import { scratch } from "../support/scratch.ts";
import { recallkv } from "./child.ts";

const files = scratch();

const shipped = (path: string) => fileURLToPath(new URL(`../../models/${path}`, import.meta.url));

describe("inspect", () => {
  it("says what the shipped GGUF file is", async () => {
    const { largestContext, weights, ...found } = await inspect(shipped("mini/model-q8_0.gguf"));
    assertEquals(found, {
      family: "llama",
      layers: 10,
      hidden: 512,
      heads: 8,
      kvHeads: 2,
      headDim: 64,
      intermediate: 1408,
      vocab: 16384,
      trainedContext: 16384,
      parameters: 36_579_840,
      kvBytesPerToken: { f32: 10_320, f16: 5_200, bf16: 5_200, q8: 2_800 },
      chatTemplate: true,
    });
    assertEquals(Object.keys(weights).sort(), ["f32", "q8_0"]);
    assertGreater(largestContext, 0);
  });

  it("says what a directory is", async () => {
    const { family, vocab, weights } = await inspect(shipped("nano"));
    assertEquals([family, vocab, Object.keys(weights)], ["llama", 2048, ["bf16"]]);
  });

  it("refuses what is no model", async () => {
    await assertRejects(() => inspect(shipped("nano/README.md")), FormatError, "it is no GGUF file");
  });

  it("and generate end with one sentence and code 1 for what cannot be loaded", async () => {
    const whole = readFileSync(shipped("mini/model-q8_0.gguf"));
    const paths = [
      files.file("cut.gguf", whole.subarray(0, 1 << 20)),
      files.file("page.gguf", "<!DOCTYPE html><html></html>"),
      files.folder("empty", {}),
    ];
    await Promise.all(paths.flatMap((path) =>
      [["inspect", path], ["generate", "Hello", "--model", path]].map(async (args) => {
        const { code, out, err } = await recallkv(args);
        assertEquals([code, out, err.split("\n").length], [1, "", 2], err);
        assertMatch(err, /^recallkv: Cannot load "(cut\.gguf|page\.gguf|empty)": .* (but the file has|want) .*\n$/);
      })
    ));
  });
});
