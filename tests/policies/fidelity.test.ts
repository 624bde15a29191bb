// The measures of a policy against exact attention: what they say where the answer is known.
import { assert, assertAlmostEquals, assertEquals, assertGreater, assertLess, assertRejects } from "@std/assert";
import { describe, it } from "node:test";
import { fidelity, type Witness } from "../../lib/metrics/fidelity.ts";
import { Probe } from "../../lib/metrics/probe.ts";
import { clusterKV } from "../../lib/policies/cluster_kv.ts";
import { full } from "../../lib/policies/full.ts";
import type { Policy } from "../../lib/policies/policy.ts";
import { slidingWindow } from "../../lib/policies/sliding_window.ts";
import { snapKV } from "../../lib/policies/snap_kv.ts";
import { decode, fresh } from "../support/run.ts";
import { nano, proseTokens } from "../support/nano.ts";

const options = { capacity: 1024, kvDtype: "f32" as const };

async function measured(policy: Policy, witness?: Witness) {
  const [model, prompt] = [await nano(), await proseTokens(500)];
  const probe = new Probe(policy);
  using session = model.session({ ...options, kv: probe.policy });
  await session.prefill(prompt);
  await decode(session, 3);
  return await fidelity(probe, session, { witness });
}

describe("fidelity", () => {
  it("finds nothing missing where every row is read", async () => {
    const { recallRate, mass, error, rows } = await measured(clusterKV({ budget: 1024, tokensPerCluster: 16, exempt: [] }));
    assertEquals([recallRate, rows], [1, 502]);
    assertAlmostEquals(mass, 1, 1e-12);
    assertLess(error, 1e-5);
  });

  it("sees more with more rows, and counts them", async () => {
    const few = await measured(clusterKV({ budget: 32, tokensPerCluster: 16, exempt: [] }));
    const more = await measured(clusterKV({ budget: 200, tokensPerCluster: 16, exempt: [] }));
    assertLess(few.mass, more.mass);
    assertLess(more.error, few.error);
    assertGreater(few.error, 0.01);
    assertEquals([few.rows, more.rows], [16 + 32 + 2, 16 + 200 + 2]);
  });

  it("asks a witness for rows that were given back", async () => {
    const [model, prompt] = [await nano(), await proseTokens(500)];
    const probe = new Probe(full());
    using session = model.session({ ...options, kv: probe.policy });
    await session.prefill(prompt);
    const witness = { probe, session };
    for (const policy of [slidingWindow({ window: 60 }), snapKV({ budget: 64 })]) {
      const alone = await measured(policy);
      const { mass, rows } = await measured(policy, witness);
      assertAlmostEquals(alone.mass, 1, 1e-3); // of the rows it still holds
      assertLess(mass, 0.99);
      assertLess(rows, 70);
    }
  });

  it("changes nothing about what it watches", async () => {
    const [model, prompt] = [await nano(), await proseTokens(500)];
    const kv = clusterKV({ budget: 60, tokensPerCluster: 16, exempt: [1] });
    const want = await fresh(model, { ...options, kv }, prompt, 20);
    assertEquals(await fresh(model, { ...options, kv: new Probe(kv).policy }, prompt, 20), want);
  });

  it("wants f32 rows", async () => {
    const [model, probe] = [await nano(), new Probe(clusterKV())];
    using session = model.session({ kv: probe.policy, capacity: 64 });
    await session.prefill([1, 2, 3]);
    const error = await assertRejects(() => fidelity(probe, session), RangeError);
    assert(error.message.includes("f16"));
  });
});
