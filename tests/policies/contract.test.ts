// What every policy promises (lib/policies/policy.ts), whatever it selects.
import { assert, assertEquals, assertNotEquals, assertThrows } from "@std/assert";
import { describe, it } from "node:test";
import { clusterKV } from "../../lib/policies/cluster_kv.ts";
import { type Policy } from "../../lib/policies/policy.ts";
import { decode, fresh } from "../support/run.ts";
import { nano, proseTokens } from "../support/nano.ts";
import { contestants } from "./contestants.ts";
import { capacity, contract, length, steps } from "./contract.ts";

for (const contestant of contestants) {
  describe(`${contestant.name} keeps the policy contract`, () => {
    for (const { name, run } of contract(contestant)) it(name, run);

    it("does not depend on the number of threads", async () => {
      const prompt = await proseTokens(length);
      const [one, two] = [await nano({ threads: 1 }), await nano({ threads: 2 })];
      const [a, b] = [{ kv: contestant.small(), capacity }, { kv: contestant.small(), capacity }];
      assertEquals(await fresh(one, a, prompt, steps), await fresh(two, b, prompt, steps));
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
