// What every policy promises (lib/policies/policy.ts), whatever it selects.
import { assert, assertEquals, assertLess, assertNotEquals, assertThrows } from "@std/assert";
import { describe, it } from "node:test";
import { clusterKV } from "../../lib/policies/cluster_kv.ts";
import { full } from "../../lib/policies/full.ts";
import { type Policy } from "../../lib/policies/policy.ts";
import { decode, fresh, largestDifference } from "../support/run.ts";
import { nano, proseTokens } from "../support/nano.ts";
import { contestants } from "./contestants.ts";

const capacity = 1024;
const length = 600;
const steps = 70;

for (const { name, small, whole } of contestants) {
  describe(`${name} keeps the policy contract`, () => {
    it("gives the full attention's logits when its budget holds every row", async () => {
      const [model, prompt] = [await nano(), await proseTokens(length)];
      const want = await fresh(model, { kv: full(), capacity, kvDtype: "f32" }, prompt, steps);
      const got = await fresh(model, { kv: whole(), capacity, kvDtype: "f32" }, prompt, steps);
      assertEquals(got.tokens, want.tokens);
      assertLess(largestDifference(got.logits, want.logits), 1e-3);
    });

    it("replays what it does eagerly, bit by bit", async () => {
      const [model, prompt] = [await nano(), await proseTokens(length)];
      const options = { kv: small(), capacity };
      assertEquals(await fresh(model, options, prompt, steps), await fresh(model, { ...options, eager: true }, prompt, steps));
    });

    it("does not depend on the number of threads", async () => {
      const prompt = await proseTokens(length);
      const [one, two] = [await nano({ threads: 1 }), await nano({ threads: 2 })];
      assertEquals(await fresh(one, { kv: small(), capacity }, prompt, steps), await fresh(two, { kv: small(), capacity }, prompt, steps));
    });

    it("holds through 1,000 generated tokens", async () => {
      const [model, prompt] = [await nano(), await proseTokens(300)];
      const { tokens, logits } = await fresh(model, { kv: small(), capacity: 1400 }, prompt, 1000);
      assertEquals([tokens.length, logits.every(Number.isFinite)], [1000, true]);
    });

    it("does not depend on its neighbours in a batch", async () => {
      const model = await nano();
      const lengths = [length, 37, 411];
      using together = model.session({ kv: small(), capacity, slots: 3 });
      for (const [slot, tokens] of lengths.entries()) await together.prefill(await proseTokens(tokens, slot), { slot });
      const seen: number[][] = [[], [], []];
      for await (const { slot, token } of together.decode({ maxTokens: steps, stop: [] })) seen[slot].push(token);
      for (const [slot, tokens] of lengths.entries()) {
        using alone = model.session({ kv: small(), capacity });
        await alone.prefill(await proseTokens(tokens, slot));
        const want = await decode(alone, steps);
        assertEquals(seen[slot], want.tokens);
        assertEquals(await together.logits({ slot }), want.logits);
      }
    });

    it("comes back to a mark as if nothing had happened", async () => {
      const [model, prompt] = [await nano(), await proseTokens(length)];
      const [question, other] = [await proseTokens(30, 3), await proseTokens(300, 4)];
      using session = model.session({ kv: small(), capacity });
      await session.prefill(prompt);
      const mark = session.mark();
      await session.prefill(question, { query: "sparse" });
      const first = await decode(session, steps);
      session.rewind(mark);
      await session.prefill(other); // long enough for new segments
      await decode(session, 5);
      session.rewind(mark);
      await session.prefill(question, { query: "sparse" });
      assertEquals(await decode(session, steps), first);

      using never = model.session({ kv: small(), capacity });
      await never.prefill(prompt);
      await never.prefill(question, { query: "sparse" });
      assertEquals(await decode(never, steps), first);
    });
  });
}

describe("a policy's step", () => {
  const broken = (select: (tensor: { read(): Promise<unknown> }, allocate: () => unknown) => void): Policy => ({
    name: "broken",
    sink: 0,
    layer: (rows, memory) => ({
      select() {
        select(rows.position, () => memory.tensor("f32", [1, 4]));
        return {};
      },
    }),
  });

  it("cannot allocate while it is recorded", async () => {
    const model = await nano();
    using session = model.session({ kv: broken((_, allocate) => allocate()), capacity: 64 });
    await session.prefill([1, 2, 3]);
    await assertThrowsLater(() => decode(session, 2), "RKV_RECORDING");
  });

  it("cannot read while it is recorded", async () => {
    const model = await nano();
    let failure: unknown;
    using session = model.session({ kv: broken((tensor) => tensor.read().catch((error) => failure = error)), capacity: 64 });
    await session.prefill([1, 2, 3]);
    await decode(session, 2);
    assertEquals((failure as { code?: string }).code, "RKV_RECORDING");
  });
});

describe("clusterKV's options", () => {
  it("change what is read", async () => {
    const [model, prompt] = [await nano(), await proseTokens(length)];
    const narrow = await fresh(model, { kv: clusterKV({ budget: 8, exempt: [] }), capacity }, prompt, 20);
    const wide = await fresh(model, { kv: clusterKV({ budget: 300, exempt: [] }), capacity }, prompt, 20);
    assertNotEquals(narrow.logits, wide.logits);
  });

  it("refuse a budget that is no number of rows", async () => {
    const model = await nano();
    for (const budget of [-1, 2.5, NaN, "a lot", "1/0"]) {
      const error = assertThrows(() => model.session({ kv: clusterKV({ budget }), capacity: 1024 }), RangeError);
      assert(error.message.includes(JSON.stringify(budget)), error.message);
    }
  });
});

async function assertThrowsLater(work: () => Promise<unknown>, code: string): Promise<void> {
  let caught: { code?: string } | undefined;
  await work().catch((error) => caught = error);
  assertEquals(caught?.code, code);
}
