// What rounding KV rows costs: nano reads 1,200 tokens of prose with rows of each dtype, against rows in F32.
import { assertGreater, assertLess } from "@std/assert";
import { after, it } from "node:test";
import type { KvDType } from "../../lib/types.ts";
import { divergence, largestDifference } from "../support/run.ts";
import { nano, proseTokens } from "../support/nano.ts";

const TOKENS = 1200;
const table: string[] = [];
after(() => console.log(["", "rows     largest logit error     mean KL (nats) over 48 tokens", ...table].join("\n")));

/** Logits at 48 places, each token fed through decode attention. */
async function logits(kvDtype: KvDType): Promise<Float32Array[]> {
  const [model, tokens] = [await nano(), await proseTokens(TOKENS)];
  using session = model.session({ kvDtype, capacity: TOKENS });
  await session.prefill(tokens.slice(0, TOKENS - 48));
  const seen: Float32Array[] = [];
  for (const token of tokens.slice(TOKENS - 48)) {
    await session.prefill([token], { query: "sparse" });
    seen.push(await session.logits());
  }
  return seen;
}

/**
 * Rounding error of a key's channel, in deviations: 8 bits of mantissa (F16 has 11, but prompts are read in BF16 products where the machine has
 * them); 127 steps up to the row's largest, about 2.5 deviations.
 */
const rounding = { f16: 2 ** -9, bf16: 2 ** -9, q8: 2.5 / 127 / 2 } as const;

it("rows in 16 and 8 bits cost what their rounding says", async () => {
  const exact = await logits("f32");
  const found = new Map<string, number>();
  for (const kvDtype of ["f16", "bf16", "q8"] as const) {
    const got = await logits(kvDtype);
    const error = Math.max(...exact.map((want, i) => largestDifference(want, got[i])));
    const kl = exact.reduce((sum, want, i) => sum + divergence(want, got[i]), 0) / exact.length;
    table.push(`${kvDtype.padEnd(9)}${error.toExponential(1).padEnd(24)}${kl.toExponential(1)}`);
    found.set(kvDtype, error);
    // A logit moves by the rounding error times what the network makes of a deviation; the same factor for all dtypes, below 64 here.
    assertLess(error, 64 * rounding[kvDtype]);
    assertGreater(error, 0); // the rows really are rounded
  }
  assertLess(Math.max(found.get("f16")!, found.get("bf16")!), found.get("q8")!);
});
