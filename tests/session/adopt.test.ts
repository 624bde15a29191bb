// adopt(): one prefill serves many policies; reset(): a slot is as if new; evicting policies give memory back.
import { assert, assertEquals, assertGreater, assertLess, assertRejects, assertThrows } from "@std/assert";
import { describe, it } from "node:test";
import { chunkKV } from "../../lib/policies/chunk_kv.ts";
import { clusterKV } from "../../lib/policies/cluster_kv.ts";
import { h2o } from "../../lib/policies/h2o.ts";
import { full } from "../../lib/policies/full.ts";
import { pyramidInfer } from "../../lib/policies/pyramid_infer.ts";
import { quest } from "../../lib/policies/quest.ts";
import { slidingWindow } from "../../lib/policies/sliding_window.ts";
import { snapKV } from "../../lib/policies/snap_kv.ts";
import { decode, fresh } from "../support/run.ts";
import { nano, proseTokens } from "../support/nano.ts";

const capacity = 2048;

describe("adopt", () => {
  const policies = [
    full,
    () => clusterKV({ budget: 60, tokensPerCluster: 16, exempt: [1], every: 40 }),
    () => slidingWindow({ window: 60 }),
    () => quest({ budget: 64 }),
  ];
  for (const policy of policies) {
    it(`leaves ${policy().name} as if it had read the text itself`, async () => {
      const [model, prompt] = [await nano(), await proseTokens(700)];
      const want = await fresh(model, { kv: policy(), capacity }, prompt, 30);
      using source = model.session({ capacity: 1024 });
      await source.prefill(prompt);
      using session = model.session({ kv: policy(), capacity, slots: 2 });
      await session.adopt(source, { slot: 1 });
      const got = [];
      for await (const { token } of session.decode({ maxTokens: 30, stop: [] })) got.push(token);
      assertEquals(got, want.tokens);
      assertEquals(await session.logits({ slot: 1 }), want.logits);
      assertEquals(source.length(), 700);
    });
  }

  it("refuses what it cannot do", async () => {
    const [model, prompt] = [await nano(), await proseTokens(100)];
    using source = model.session({ capacity: 256 });
    await source.prefill(prompt);
    using observer = model.session({ kv: h2o({ budget: 50 }), capacity: 256 });
    await assertRejects(() => observer.adopt(source), TypeError, "must see the queries");
    using narrow = model.session({ capacity: 64 });
    await assertRejects(() => narrow.adopt(source), RangeError, "capacity is 64");
    using other = model.session({ capacity: 256, kvDtype: "f32" });
    await assertRejects(() => other.adopt(source), RangeError, "kvDtype");
    using clusters = model.session({ kv: clusterKV(), capacity: 256 });
    await clusters.adopt(source);
    await assertRejects(() => clusters.adopt(source), RangeError, "holds tokens");
    using last = model.session({ capacity: 256 });
    await assertRejects(() => last.adopt(clusters), TypeError, "moves rows");
  });
});

describe("reset", () => {
  for (const kv of [() => clusterKV({ budget: 60, tokensPerCluster: 16, exempt: [] }), () => h2o({ budget: 80 })]) {
    it(`leaves a slot of ${kv().name} as if it were new`, async () => {
      const [model, long, short] = [await nano(), await proseTokens(600), await proseTokens(40, 2)];
      const want = await fresh(model, { kv: kv(), capacity }, short, 30);
      using session = model.session({ kv: kv(), capacity });
      await session.prefill(long);
      await decode(session, 30);
      session.reset();
      await session.prefill(short);
      assertEquals(await decode(session, 30), want);
    });
  }
});

describe("policies that give rows back", () => {
  for (const kv of [slidingWindow({ window: 100 }), snapKV({ budget: 100 }), h2o({ budget: 100 }), chunkKV({ budget: 100 })]) {
    it(`${kv.name} frees the memory of 1,900 rows`, async () => {
      const [model, prompt] = [await nano(), await proseTokens(1900)];
      const options = { capacity: 16_384, onWarning: () => {} }; // rows of a small capacity are committed at once
      using everything = model.session(options);
      using session = model.session({ ...options, kv });
      const before = [everything.memory, session.memory];
      await everything.prefill(prompt);
      await session.prefill(prompt);
      const grown = [everything.memory - before[0], session.memory - before[1]];
      assertGreater(grown[0], 0);
      assertLess(grown[1], grown[0] / 3);
    });
  }

  it("pyramidInfer holds fewer rows in deeper layers", async () => {
    const [model, prompt] = [await nano(), await proseTokens(1900)];
    using session = model.session({ kv: pyramidInfer(), capacity });
    await session.prefill(prompt);
    const rows = session.rows();
    assert(rows.every((held, l) => l < 2 || held < rows[l - 1]), String(rows)); // the first two hold all
  });
});

it("a policy written for another version is refused", async () => {
  const model = await nano();
  assertThrows(() => model.session({ kv: { ...full(), version: 7 } }), RangeError, "policy version 7, want 1");
});
