/** The real decoder against the f64 reference, on the nano model: prefill in chunks, then steps. */
import { assertEquals, assertLess } from "@std/assert";
import { readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { isas } from "../../lib/device.ts";
import { decode } from "../reference/decoder.ts";
import { readSafetensors } from "../reference/safetensors.ts";
import { nano } from "../support/nano.ts";

const read = (path: string) => readFileSync(new URL(path, import.meta.url));
const config = JSON.parse(read("../../models/nano/config.json").toString());
const { prompts } = JSON.parse(read("../golden/nano/transformers-f32.json").toString()) as {
  prompts: { name: string; tokens: number[]; greedy: number[] }[];
};
const { tokens, greedy } = prompts.find(({ name }) => name === "hundred")!;
const prompt = tokens.slice(0, 75);

/** Logits differ by less than this: f32 over 6 layers and rows of up to 80 tokens (two other engines agree to 1e-5 there). */
const BOUND = 5e-5;
/** The same where products take activations as BF16: what that makes of a logit in tests/models/golden.test.ts. */
const ROUNDED = 0.32;

describe("the decoder", () => {
  const expected =
    decode(config, readSafetensors(read("../../models/nano/model.safetensors")), tokens.slice(0, 80), prompt.length - 1).logits;

  for (const [isa, weights] of isas().flatMap((isa) => [[isa, "f32"], [isa, undefined]] as const)) {
    it(`${isa}, weights in ${weights ?? "bf16"}: prefill in uneven chunks and single steps give the reference's logits`, async () => {
      const bound = isa === "avx512bf16" && !weights ? ROUNDED : BOUND;
      const model = await nano({ isa, weights });
      using session = model.session({ kvDtype: "f32", capacity: 128, chunk: 32 });
      await session.prefill(prompt);
      for (const [step, want] of expected.slice(0, 5).entries()) {
        const got = await session.logits();
        assertEquals(got.length, want.length);
        assertLess(got.reduce((most, x, i) => Math.max(most, Math.abs(x - want[i])), 0), bound, `after token ${prompt.length + step}`);
        await session.prefill([tokens[prompt.length + step]], { query: "sparse" }); // a step of its own
      }
    });
  }

  it("chooses the most likely token of the reference's logits", async () => {
    const model = await nano();
    using session = model.session({ kvDtype: "f32", capacity: 256 });
    await session.prefill(tokens);
    const chosen: number[] = [];
    for await (const { token } of session.decode({ maxTokens: 8, stop: [] })) chosen.push(token);
    assertEquals(chosen, greedy.slice(0, 8));
  });
});
