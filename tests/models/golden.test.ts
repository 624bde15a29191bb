// The shipped nano model against engines nobody here wrote (tests/golden/README.md says which, and how the files were made).
import { assert, assertEquals, assertLess } from "@std/assert";
import { readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { clusterKV } from "../../lib/policies/cluster_kv.ts";
import { isas } from "../../lib/device.ts";
import { nano } from "../support/nano.ts";
import { decode, divergence, largestDifference, logprobOf } from "../support/run.ts";

interface GoldenPrompt {
  name: string;
  text: string;
  tokens: number[];
  greedy: number[];
  /** Tokens fed and judged, where they are not the engine's own. */
  teacher?: number[];
  logprob: number[];
  gap: number[];
  logits?: { position: number; f32: string }[];
}

const golden = (name: string): GoldenPrompt[] =>
  JSON.parse(readFileSync(new URL(`../golden/nano/${name}.json`, import.meta.url), "utf8")).prompts;

/** What f32 sums in another order make of a logit: the two engines differ by 1.4e-4 (tests/golden/README.md); four times that. */
const REORDERED = 6e-4;
/** What bfloat16 activations make of a logit: the engine's own two runs differ by 0.16; twice that, for two logits make a difference. Products
 * with BF16 weights round activations here too, where the machine multiplies pairs of BF16. */
const ROUNDED = 0.32;

describe("nano with F32 rows", () => {
  for (const engine of ["transformers-f32", "llamacpp-f32"]) {
    for (const prompt of golden(engine)) {
      it(`continues "${prompt.name}" as ${engine} does: the same 64 tokens`, async () => {
        const model = await nano({ weights: "f32" });
        using session = model.session({ kvDtype: "f32", capacity: 2048 });
        await session.prefill(prompt.tokens);
        const { tokens, logprobs } = await decode(session, 64);
        assertEquals(tokens, prompt.greedy);
        for (const [i, logprob] of logprobs.entries()) assertLess(Math.abs(logprob - prompt.logprob[i]), REORDERED);
      });
    }
  }

  const judges = [["transformers-f32", "f32", REORDERED, 1e-6], ["transformers-f32", undefined, ROUNDED, 5e-3], [
    "transformers-bf16-teacher",
    undefined,
    ROUNDED,
    5e-3,
  ]] as const;
  for (const [engine, weights, bound, kl] of judges) {
    it(`gives the logits of ${engine}, weights in ${weights ?? "bf16"}`, async () => {
      const model = await nano({ weights });
      for (const { tokens, teacher, greedy, logits = [] } of golden(engine)) {
        const fed = [...tokens, ...(teacher ?? greedy)];
        for (const { position, f32 } of logits) {
          using session = model.session({ kvDtype: "f32", capacity: 2048 });
          await session.prefill(fed.slice(0, position + 1));
          const [got, want] = [await session.logits(), new Float32Array(Uint8Array.from(atob(f32), (c) => c.charCodeAt(0)).buffer)];
          assertEquals(got.length, want.length);
          assertLess(largestDifference(got, want), bound);
          assertLess(divergence(want, got), kl);
        }
      }
    });
  }

  it("continues a prompt alike under every instruction set", async () => {
    const prompt = golden("transformers-f32")[2];
    for (const isa of isas()) {
      const model = await nano({ isa, weights: "f32" });
      using session = model.session({ kvDtype: "f32", capacity: 1024 });
      await session.prefill(prompt.tokens);
      assertEquals((await decode(session, 64)).tokens, prompt.greedy, isa);
    }
  });

  it("gives the engine's own token ids for its text", async () => {
    const { tokenizer } = await nano();
    for (const { text, tokens } of golden("transformers-f32")) assertEquals(tokenizer.encode(text, { special: true }), tokens);
  });

  it("gives the same tokens when the policy reads every row in cluster order", async () => {
    const prompt = golden("transformers-f32")[2];
    const model = await nano({ weights: "f32" });
    using session = model.session({ kv: clusterKV({ budget: 1024, exempt: [] }), kvDtype: "f32", capacity: 1024 });
    await session.prefill(prompt.tokens);
    assertEquals((await decode(session, 64)).tokens, prompt.greedy);
  });
});

describe("nano with 16-bit rows", () => {
  // transformers in bfloat16 rounds activations after every operation; here rows are rounded, and at most what enters a product.
  for (const kvDtype of ["bf16", "f16"] as const) {
    for (const prompt of golden("transformers-bf16-teacher")) {
      it(`${kvDtype}: agrees with transformers in bfloat16 on "${prompt.name}", fed its tokens`, async () => {
        const model = await nano();
        using session = model.session({ kvDtype, capacity: 2048 });
        await session.prefill(prompt.tokens);
        let identical = true;
        for (const [i, token] of (prompt.teacher ?? prompt.greedy).entries()) {
          const logits = await session.logits();
          const best = logits.indexOf(logits.reduce((a, b) => Math.max(a, b)));
          const own = logprobOf(logits, token);
          assertLess(Math.abs(own - prompt.logprob[i]), ROUNDED, `step ${i}`);
          if (best !== token && prompt.gap[i] > ROUNDED) identical = false;
          await session.prefill([token], { query: "sparse" });
        }
        assert(identical, "another token than the engine's where its gap is above the bound");
      });
    }
  }
});
