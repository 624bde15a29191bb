// What every policy promises (lib/policies/policy.ts), whatever it selects.
import { assert, assertEquals, assertLess, assertNotEquals, assertThrows } from "@std/assert";
import { describe, it } from "node:test";
import { LayerBases } from "../../lib/calibration.ts";
import { chunkKV } from "../../lib/policies/chunk_kv.ts";
import { clusterKV } from "../../lib/policies/cluster_kv.ts";
import { full } from "../../lib/policies/full.ts";
import { type Policy } from "../../lib/policies/policy.ts";
import { h2o } from "../../lib/policies/h2o.ts";
import { infiniGen } from "../../lib/policies/infini_gen.ts";
import { pyramidInfer } from "../../lib/policies/pyramid_infer.ts";
import { quest } from "../../lib/policies/quest.ts";
import { sals } from "../../lib/policies/sals.ts";
import { snapKV } from "../../lib/policies/snap_kv.ts";
import { slidingWindow } from "../../lib/policies/sliding_window.ts";
import { decode, fresh, largestDifference } from "../support/run.ts";
import { nano, proseTokens } from "../support/nano.ts";

interface Contestant {
  name: string;
  /** Reads few rows of a 600-token prompt. */
  small: () => Policy;
  /** Reads every row of it. */
  whole: () => Policy;
}

const contestants: Contestant[] = [
  { name: "full", small: full, whole: full },
  { name: "slidingWindow", small: () => slidingWindow({ window: 60 }), whole: () => slidingWindow({ window: 1024 }) },
  {
    name: "clusterKV",
    small: () => clusterKV({ budget: 60, tokensPerCluster: 16, exempt: [1], every: 40 }),
    whole: () => clusterKV({ budget: 1024, exempt: [] }),
  },
  {
    name: "clusterKV in segments",
    small: () => clusterKV({ budget: 60, tokensPerCluster: 8, exempt: [], segment: 200, every: 32 }),
    whole: () => clusterKV({ budget: 1024, exempt: [], segment: 100, every: 50 }),
  },
  {
    name: "clusterKV with bound, per head",
    small: () => clusterKV({ budget: 60, tokensPerCluster: 16, exempt: [0], every: 40, bound: 0.3, perHead: true }),
    whole: () => clusterKV({ budget: 1024, exempt: [], bound: 0.3, perHead: true }),
  },
  {
    name: "clusterKV with estimates",
    small: () => clusterKV({ budget: 60, tokensPerCluster: 16, exempt: [0], every: 40, estimate: true }),
    whole: () => clusterKV({ budget: 1024, exempt: [], estimate: true }),
  },
  {
    name: "quest",
    small: () => quest({ budget: 64, exempt: [0] }),
    whole: () => quest({ budget: 1024, exempt: [] }),
  },
  {
    name: "quest by group",
    small: () => quest({ budget: 60, page: 8, sink: 16, perHead: false, exempt: [] }),
    whole: () => quest({ budget: 1024, page: 8, sink: 16, perHead: false, exempt: [] }),
  },
  { name: "snapKV", small: () => snapKV({ budget: 100 }), whole: () => snapKV({ budget: 1024 }) },
  {
    name: "snapKV per head",
    small: () => snapKV({ budget: 100, perHead: true, pooling: "max", kernel: 7 }),
    whole: () => snapKV({ budget: 1024, perHead: true }),
  },
  { name: "h2o", small: () => h2o({ budget: 100 }), whole: () => h2o({ budget: 1024 }) },
  { name: "h2o with rates", small: () => h2o({ budget: 100, recent: 0.2, rates: true }), whole: () => h2o({ budget: 1024, rates: true }) },
  { name: "chunkKV", small: () => chunkKV({ budget: 100 }), whole: () => chunkKV({ budget: 1024 }) },
  { name: "pyramidInfer", small: () => pyramidInfer(), whole: () => pyramidInfer({ least: 1024, every: 1024 }) },
  {
    name: "infiniGen",
    small: () => infiniGen({ skew: identity("skew"), budget: 60 }),
    whole: () => infiniGen({ skew: identity("skew"), budget: 1024, partial: 1, alpha: Infinity }),
  },
  {
    name: "sals",
    small: () => sals({ projection: identity("projection"), budget: 60, exempt: [0] }),
    whole: () => sals({ projection: identity("projection"), budget: 1024, rank: 1, ranked: 1, exempt: [] }),
  },
];
/** Bases of the nano model that leave keys as they are. */
function identity(kind: "skew" | "projection"): LayerBases {
  const [layers, kvHeads, headDim] = [6, 3, 32];
  const [copies, width] = kind === "skew" ? [kvHeads, headDim] : [1, kvHeads * headDim];
  const basis = Float32Array.from({ length: copies * width * width }, (_, i) => Math.floor(i / width) % width === i % width ? 1 : 0);
  return new LayerBases(kind, copies > 1 ? [copies, width, width] : [width, width], new Array(layers).fill(basis));
}
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
