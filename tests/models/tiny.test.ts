// Tiny decoders of every family, in every format of weights, against llama.cpp and transformers: 544 tokens, a batch and a window crossed.
// The bounds come from the engines themselves: how far they are from each other on the same weights (tests/golden/README.md).
import { assert, assertEquals, assertLess } from "@std/assert";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { after, describe, it } from "node:test";
import { load } from "../../lib/model.ts";
import { divergence, largestDifference } from "../support/run.ts";
import { roundsToBf16 } from "../support/nano.ts";
import { scratch } from "../support/scratch.ts";
import { directoryOf } from "../golden/tiny/directory.ts";
import { ggufOf } from "../golden/tiny/gguf.ts";
import { directoryCases, ggufCases } from "../golden/tiny/shapes.ts";

interface GoldenCase {
  name: string;
  sha256: string;
  dtype?: string;
  logits: { position: number; f32: string }[];
}

const read = (name: string) => JSON.parse(readFileSync(new URL(`../golden/tiny/${name}.json`, import.meta.url), "utf8"));
const { tokens, positions } = read("teacher") as { tokens: number[]; positions: number[] };
const goldens = (name: string): GoldenCase[] => read(name).cases;
const [llamacpp, dequantised, transformers] = ["llamacpp", "dequantised", "transformers"].map(goldens);

function logitsOf(cases: readonly GoldenCase[], name: string, dtype?: string): Float32Array[] {
  const found = cases.find((one) => one.name === name && (dtype === undefined || one.dtype === dtype))!;
  return found.logits.map(({ f32 }) => new Float32Array(Uint8Array.from(atob(f32), (c) => c.charCodeAt(0)).buffer));
}

/** Largest difference over all positions. */
const distance = (a: readonly Float32Array[], b: readonly Float32Array[]) =>
  a.reduce((most, logits, i) => Math.max(most, largestDifference(logits, b[i])), 0);

/** What f32 sums in another order make of a logit of these decoders: the most that the two engines differ on the same F32 file. */
const REORDERED = Math.max(
  ...ggufCases.filter(({ type }) => type === "F32").map(({ name }) => distance(logitsOf(llamacpp, name), logitsOf(dequantised, name))),
);

const files = scratch();
const table: string[] = [];
after(() => console.log(["", "largest logit error, and KL in nats, 544 tokens:", ...table].join("\n")));

/** Logits at both positions: the prompt read in chunks, and the last tokens of it fed step by step. */
async function ours(path: string): Promise<{ dense: Float32Array[]; stepped: Float32Array }> {
  using model = await load(path, { device: "cpu" });
  using session = model.session({ kvDtype: "f32", capacity: 600, chunk: 200 });
  const dense: Float32Array[] = [];
  let begin = 0;
  for (const position of positions) {
    await session.prefill(tokens.slice(begin, position + 1));
    dense.push(await session.logits());
    begin = position + 1;
  }
  session.reset();
  await session.prefill(tokens.slice(0, -24));
  await session.prefill(tokens.slice(-24), { query: "sparse" });
  return { dense, stepped: await session.logits() };
}

function note(name: string, engine: string, want: readonly Float32Array[], got: readonly Float32Array[], bound: number): void {
  const worst = Math.max(...want.map((logits, i) => divergence(logits, got[i])));
  const off = distance(want, got);
  table.push(
    `  ${name.padEnd(22)} ${engine.padEnd(22)} ${off.toExponential(1)} (bound ${bound.toExponential(1)})  KL ${worst.toExponential(1)}`,
  );
}

describe("GGUF files", () => {
  for (const one of ggufCases) {
    it(`${one.name} gives llama.cpp's logits`, async () => {
      const bytes = ggufOf(one)[0];
      const peer = llamacpp.find(({ name }) => name === one.name)!;
      assertEquals(createHash("sha256").update(bytes).digest("hex"), peer.sha256, "another file than the engine's");
      const { dense, stepped } = await ours(files.file(`${one.name}.gguf`, bytes));
      const [theirs, exact] = [logitsOf(llamacpp, one.name), logitsOf(dequantised, one.name)];
      // Both sides round activations to 8 bits a block where weights are quantised. What that costs the peer against the same weights in f32
      // is one draw of the noise; ours is another, so it may be up to twice that. With BF16 weights both round activations to BF16. With F16 the
      // peer rounds them to F16; we, where the machine multiplies pairs of BF16, both weights and activations to BF16, three bits fewer.
      const coarser = one.type === "F16" && roundsToBf16 ? 2 * 2 ** 3 : 1;
      const bound = Math.max(4 * REORDERED, 2 * coarser * distance(theirs, exact));
      note(one.name, "f32 on its weights", exact, dense, bound);
      note(one.name, "llama.cpp", theirs, dense, 1.5 * bound);
      assertLess(distance(dense, exact), bound);
      assertLess(largestDifference(stepped, exact[1]), bound);
      assertLess(distance(dense, theirs), 1.5 * bound);
    });
  }

  it("in three parts are one model", async () => {
    const one = ggufCases.find(({ name }) => name === "qwen3-Q4_K_M")!;
    const parts = ggufOf(one, 3);
    const paths = parts.map((bytes, i) => files.file(`split-${String(i + 1).padStart(5, "0")}-of-00003.gguf`, bytes));
    const whole = await ours(files.file("whole.gguf", ggufOf(one)[0]));
    assertEquals(await ours(paths[0]), whole);
    assertEquals(await ours(paths[2]), whole);
  });
});

describe("Hugging Face directories", () => {
  for (const one of directoryCases) {
    it(`${one.name} gives transformers' logits`, async () => {
      const { dense, stepped } = await ours(files.folder(one.name, directoryOf(one)));
      const exact = logitsOf(transformers, one.name, "float32");
      const inBf16 = one.name.replace(/-F16$/, "-BF16");
      // What rounding every activation costs the engine; twice, for two runs make a difference.
      const cost = one.dtype === "F32"
        ? 0
        : 2 * distance(logitsOf(transformers, inBf16, "bfloat16"), logitsOf(transformers, inBf16, "float32"));
      const bound = cost && roundsToBf16 ? cost * (one.dtype === "F16" ? 2 : 1) : 4 * REORDERED; // F16 weights are rounded as well
      note(one.name, "transformers f32", exact, dense, bound);
      assertLess(distance(dense, exact), bound);
      assertLess(largestDifference(stepped, exact[1]), bound);
      if (one.dtype !== "BF16") return;
      const rounded = logitsOf(transformers, one.name, "bfloat16");
      note(one.name, "transformers bf16", rounded, dense, cost);
      assertLess(distance(dense, rounded), cost);
    });
  }

  it("agree where the engines agree: the table has every family and format", () => {
    assert(table.length >= 2 * ggufCases.length + directoryCases.length, `${table.length} lines`);
  });
});
