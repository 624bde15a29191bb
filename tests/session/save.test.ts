// Saving and restoring: going on is as if nothing had been in between; whatever does not fit is refused, and says what.
import { assertEquals, assertRejects } from "@std/assert";
import { readdirSync, readFileSync } from "node:fs";
import { dirname } from "node:path";
import { describe, it } from "node:test";
import { FormatError } from "../../lib/formats/checkpoint.ts";
import { clusterKV } from "../../lib/policies/cluster_kv.ts";
import { full } from "../../lib/policies/full.ts";
import { h2o } from "../../lib/policies/h2o.ts";
import type { Policy } from "../../lib/policies/policy.ts";
import { quest } from "../../lib/policies/quest.ts";
import { snapKV } from "../../lib/policies/snap_kv.ts";
import type { KvDType } from "../../lib/types.ts";
import { decode } from "../support/run.ts";
import { nano, proseTokens } from "../support/nano.ts";
import { scratch } from "../support/scratch.ts";

const files = scratch();
const capacity = 1024;
const clusters = () => clusterKV({ budget: 60, tokensPerCluster: 16, exempt: [1], every: 40 });

async function saved(name: string, kv: Policy, kvDtype: KvDType = "f16"): Promise<string> {
  const [model, prompt] = [await nano(), await proseTokens(500)];
  using session = model.session({ kv, capacity, kvDtype });
  await session.prefill(prompt);
  await decode(session, 50);
  const path = files.file(name, "");
  await session.save(path);
  return path;
}

describe("a saved session", () => {
  const cases: [Policy, KvDType][] = [[full(), "f32"], [clusters(), "f16"], [clusters(), "q8"], [quest({ budget: 64 }), "bf16"], [
    h2o({ budget: 100 }),
    "f16",
  ]];
  for (const [kv, kvDtype] of cases) {
    it(`goes on under ${kv.name} with ${kvDtype} rows as if it had never stopped`, async () => {
      const [model, prompt] = [await nano(), await proseTokens(500)];
      using never = model.session({ kv, capacity, kvDtype });
      await never.prefill(prompt);
      await decode(never, 50);
      const path = files.file("session.recall", "");
      await never.save(path);
      const want = await decode(never, 60);
      using session = await model.restore(path, { kv });
      assertEquals([session.length(), session.kvDtype, session.capacity], [549, kvDtype, capacity]);
      assertEquals(await decode(session, 60), want);
      assertEquals(await session.attended(), await never.attended());
    });
  }

  it("keeps every slot", async () => {
    const model = await nano();
    using session = model.session({ kv: clusters(), capacity, slots: 3 });
    await session.prefill(await proseTokens(300), { slot: 0 });
    await session.prefill(await proseTokens(90, 1), { slot: 2 });
    const path = files.file("slots.recall", "");
    await session.save(path);
    using back = await model.restore(path, { kv: clusters() });
    assertEquals([0, 1, 2].map((slot) => back.length(slot)), [300, 0, 90]);
    for (const slot of [0, 2]) assertEquals(await decode(back, 20, slot), await decode(session, 20, slot));
  });

  it("is refused under another policy, other options, another model, by name", async () => {
    const model = await nano();
    const path = await saved("identity.recall", clusters());
    const wrong: [Policy, string][] = [
      [full(), "another policy"],
      [clusterKV({ budget: 60, tokensPerCluster: 8, exempt: [1], every: 40 }), "other options"],
      [snapKV(), "another policy"],
    ];
    for (const [kv, sentence] of wrong) await assertRejects(() => model.restore(path, { kv }), FormatError, sentence);
  });

  it("is refused when a byte of it has changed, or its end is missing", async () => {
    const model = await nano();
    const path = await saved("whole.recall", clusters());
    const bytes = new Uint8Array(readFileSync(path));
    const refused = async (changed: Uint8Array, sentence: string) => {
      const damaged = files.file("damaged.recall", changed);
      await assertRejects(() => model.restore(damaged, { kv: clusters() }), FormatError, sentence);
    };
    for (
      const [at, sentence] of [[3, "does not begin"], [5000, "checksum"], [bytes.length >> 1, "checksum"], [
        bytes.length - 200,
        "checksum",
      ]] as const
    ) {
      const changed = bytes.slice();
      changed[at] ^= 1;
      await refused(changed, sentence);
    }
    for (let at = 0; at < bytes.length; at += Math.floor(bytes.length / 60)) {
      const changed = bytes.slice();
      changed[at] ^= 1 << (at % 8);
      await refused(changed, "");
    }
    for (const length of [0, 40, 1000, bytes.length - 1]) await refused(bytes.slice(0, length), length < 56 ? "at least" : "");
    await assertRejects(
      () => model.restore(files.file("none.recall", "").replace("none", "nothing"), { kv: clusters() }),
      FormatError,
      "no such file",
    );
  });

  it("leaves nothing behind when it cannot be written", async () => {
    const model = await nano();
    using session = model.session({ capacity: 64 });
    await session.prefill([1, 2, 3]);
    await assertRejects(() => session.save("/nowhere/session.recall"), Error, "ENOENT");
    const folder = dirname(files.file("here.recall", ""));
    await session.save(`${folder}/here.recall`);
    assertEquals(readdirSync(folder).filter((name) => name.startsWith("here")), ["here.recall"]);
    assertEquals((await decode(session, 3)).tokens.length, 3);
  });
});
