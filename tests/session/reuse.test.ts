// What a session holds is not read again, and the result is what reading everything would have given.
import { assert, assertEquals, assertRejects } from "@std/assert";
import { describe, it } from "node:test";
import { clusterKV, type Policy } from "../../mod.ts";
import { full } from "../../lib/policies/full.ts";
import { h2o } from "../../lib/policies/h2o.ts";
import { quest } from "../../lib/policies/quest.ts";
import { slidingWindow } from "../../lib/policies/sliding_window.ts";
import { nano, proseTokens } from "../support/nano.ts";
import { decode } from "../support/run.ts";

const clusters = () => clusterKV({ budget: 40, tokensPerCluster: 8, exempt: [], every: 32, segment: 128 });

/** What a fresh session says after a text. */
async function fresh(kv: Policy, tokens: readonly number[]): Promise<unknown> {
  using session = (await nano()).session({ kv, capacity: 600 });
  await session.prefill(tokens);
  return await decode(session, 12);
}

describe("prefill with reuse", () => {
  for (
    const [kv, reread] of [[full(), 40], [slidingWindow({ window: 64 }), 340], [clusters(), 340], [quest({ budget: 64 }), 340], [
      h2o({ budget: 80 }),
      340,
    ]] as [Policy, number][]
  ) {
    it(`reads no more than it must under ${kv.name}, and the answer is the same`, async () => {
      const [text, other] = [await proseTokens(340), await proseTokens(40, 2)];
      const edited = [...text.slice(0, 300), ...other];
      using session = (await nano()).session({ kv, capacity: 600 });
      assertEquals(await session.prefill(text, { reuse: true }), 340);
      assertEquals(await session.prefill(text, { reuse: true }), 0);
      await decode(session, 12);
      const shared = edited.findIndex((token, i) => token !== text[i]);
      assertEquals(await session.prefill(edited, { reuse: true }), reread === 40 ? 340 - shared : 340);
      assertEquals(session.tokens(), edited);
      assertEquals(await decode(session, 12), await fresh(kv, edited));
    });
  }

  it("goes on after what was decoded, and reads the token that waits", async () => {
    const text = await proseTokens(100);
    using session = (await nano()).session({ capacity: 300 });
    await session.prefill(text);
    const { tokens } = await decode(session, 10);
    const all = [...text, ...tokens, 17, 18, 19];
    assertEquals(await session.prefill(all, { reuse: true }), 3);
    assertEquals(session.tokens(), all);
  });

  it("comes back to the last mark that the text begins with", async () => {
    const [text, more, other] = [await proseTokens(200), await proseTokens(60, 1), await proseTokens(30, 2)];
    using session = (await nano()).session({ kv: clusters(), capacity: 600 });
    await session.prefill(text);
    const first = session.mark();
    await session.prefill(more);
    session.mark();
    await decode(session, 5);
    assertEquals(await session.prefill([...text, ...more, ...other], { reuse: true }), 30);
    assertEquals(await session.prefill([...text, ...other], { reuse: true }), 30);
    const there = await decode(session, 12);
    session.rewind(first);
    await session.prefill(other);
    assertEquals(there, await decode(session, 12));
  });

  it("takes a shorter text, and one that shares nothing", async () => {
    const [text, other] = [await proseTokens(120), await proseTokens(50, 3)];
    using session = (await nano()).session({ capacity: 300 });
    await session.prefill(text);
    assert(await session.prefill(text.slice(0, 70), { reuse: true }) > 0);
    assertEquals(await decode(session, 12), await fresh(full(), text.slice(0, 70)));
    await session.prefill([5, ...other], { reuse: true });
    assertEquals(session.length(), 51);
  });

  it("refuses what does not fit before it forgets anything", async () => {
    using session = (await nano()).session({ capacity: 100 });
    const text = await proseTokens(80);
    await session.prefill(text);
    await assertRejects(() => session.prefill([1, ...text, ...text], { reuse: true }), RangeError, "capacity is 100");
    await assertRejects(() => session.prefill([1, 99999], { reuse: true }), RangeError, "not in the vocabulary");
    const aborted = AbortSignal.abort(new Error("enough"));
    await assertRejects(() => session.prefill([1, 2], { reuse: true, signal: aborted }), Error, "enough");
    assertEquals(session.tokens(), text);
  });
});

describe("between blocks of a prompt", () => {
  it("other slots may be decoded, and nothing else be done", async () => {
    using session = (await nano()).session({ slots: 2, capacity: 900, chunk: 64 });
    using alone = (await nano()).session({ capacity: 900, chunk: 64 });
    await session.prefill(await proseTokens(90, 1), { slot: 0 });
    await alone.prefill(await proseTokens(90, 1));
    const meanwhile: number[] = [];
    await session.prefill(await proseTokens(400), {
      slot: 1,
      between: async () => {
        for await (const { token, slot } of session.decode({ maxTokens: 1, stop: [] })) {
          assertEquals(slot, 0);
          meanwhile.push(token);
        }
        for (const wrong of [() => session.reset(0), () => session.mark(0), () => session.decode({ slots: [1] }).next()]) {
          await assertRejects(async () => await wrong(), Error, "reading its prompt");
        }
      },
    });
    assertEquals(meanwhile, (await decode(alone, 6)).tokens);
    assertEquals(session.length(1), 400);
    alone.reset();
    await alone.prefill(await proseTokens(400));
    assertEquals((await decode(session, 20, 1)).tokens, (await decode(alone, 20)).tokens);
  });

  it("an abort leaves all slots as they were, but for the steps that were taken", async () => {
    using session = (await nano()).session({ slots: 2, capacity: 900, chunk: 64 });
    await session.prefill(await proseTokens(90, 1), { slot: 0 });
    const abort = new AbortController();
    const reading = session.prefill(await proseTokens(400), {
      slot: 1,
      signal: abort.signal,
      between: async () => {
        abort.abort(new Error("enough"));
        for await (const _ of session.decode({ maxTokens: 3, stop: [] }));
      },
    });
    await assertRejects(() => reading, Error, "enough");
    assertEquals([session.length(0), session.length(1)], [92, 0]);
    const rest = (await decode(session, 5, 0)).tokens;
    using alone = (await nano()).session({ capacity: 900 });
    await alone.prefill(await proseTokens(90, 1));
    assertEquals((await decode(alone, 8)).tokens.slice(3), rest);
  });
});
