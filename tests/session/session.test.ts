// Sessions: what is refused, what an abort leaves behind, what continuing means.
import { assert, assertEquals, assertGreater, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { describe, it } from "node:test";
import { decodeSteps } from "../../lib/decoding.ts";
import { RecallError } from "../../lib/errors.ts";
import { clusterKV } from "../../lib/policies/cluster_kv.ts";
import type { SessionRoom } from "../../lib/session_room.ts";
import { decode, fresh } from "../support/run.ts";
import { nano, proseTokens } from "../support/nano.ts";

const kv = () => clusterKV({ budget: 60, tokensPerCluster: 16, exempt: [], segment: 300, every: 64 });

describe("prefill", () => {
  it("in two parts of whole chunks equals one", async () => {
    const [model, prompt] = [await nano(), await proseTokens(512)];
    const whole = await fresh(model, { capacity: 1024 }, prompt, 20);
    using session = model.session({ capacity: 1024 });
    await session.prefill(prompt.slice(0, 256));
    await session.prefill(prompt.slice(256));
    assertEquals(await decode(session, 20), whole);
  });

  it("gives the same bits for any chunk length", async () => {
    const [model, prompt] = [await nano(), await proseTokens(300)];
    const want = await fresh(model, { capacity: 512, chunk: 256 }, prompt, 5);
    for (const chunk of [1, 7, 64]) assertEquals(await fresh(model, { capacity: 512, chunk }, prompt, 5), want);
  });

  it("feeds what decode yielded before it reads on", async () => {
    const [model, prompt] = [await nano(), await proseTokens(100)];
    using session = model.session({ capacity: 512 });
    await session.prefill(prompt);
    const { tokens } = await decode(session, 5);
    await session.prefill([5, 6, 7]);
    assertEquals(session.tokens(), [...prompt, ...tokens, 5, 6, 7]);
  });

  it("refuses tokens past the capacity with both numbers", async () => {
    const model = await nano();
    using session = model.session({ capacity: 64 });
    const error = await assertRejects(() => session.prefill(new Array(65).fill(1)), RangeError);
    assertStringIncludes(error.message, "65");
    assertStringIncludes(error.message, "64");
    assertEquals(session.length(), 0);
  });

  it("refuses unknown tokens and slots", async () => {
    const model = await nano();
    using session = model.session({ capacity: 64 });
    await assertRejects(() => session.prefill([1, 2048]), RangeError, "token 2048");
    await assertRejects(() => session.prefill([1.5]), RangeError, "token 1.5");
    assertThrows(() => session.prefill([1], { slot: 1 }), RangeError, "slot 1");
  });

  it("aborted in mid-way throws the reason and leaves the slot as it was", async () => {
    const [model, begin, rest] = [await nano(), await proseTokens(400), await proseTokens(1400, 1)];
    using session = model.session({ kv: kv(), capacity: 2048 });
    await session.prefill(begin);
    const abort = new AbortController();
    const reason = new Error("enough");
    const onProgress = ({ done }: { done: number }) => {
      if (done >= 500) abort.abort(reason);
    };
    const error = await assertRejects(() => session.prefill(rest, { signal: abort.signal, onProgress }), Error);
    assertEquals(error, reason);
    assertEquals(session.length(), 400);
    assertEquals(await decode(session, 60), await fresh(model, { kv: kv(), capacity: 2048 }, begin, 60));
  });

  it("reports progress up to the end", async () => {
    const [model, prompt] = [await nano(), await proseTokens(600)];
    using session = model.session({ capacity: 1024 });
    const seen: number[] = [];
    await session.prefill(prompt, { onProgress: ({ done, total }) => (assertEquals(total, 600), seen.push(done)) });
    assertEquals(seen, [...seen].sort((a, b) => a - b));
    assertEquals(seen.at(-1), 600);
  });

  it("lets timers tick", async () => {
    const model = await nano();
    using session = model.session({ capacity: 2048 });
    const prompt = await proseTokens(1800);
    let ticks = 0;
    const timer = setInterval(() => ticks++, 1);
    const began = performance.now();
    while (performance.now() - began < 2000) {
      await session.prefill(prompt);
      session.reset();
    }
    clearInterval(timer);
    assertGreater(ticks, 19);
  });
});

describe("a session", () => {
  it("refuses two calls at once", async () => {
    const [model, prompt] = [await nano(), await proseTokens(600)];
    using session = model.session({ capacity: 1024 });
    const first = session.prefill(prompt);
    const error = await assertRejects(() => session.prefill(prompt), RecallError);
    assertEquals(error.code, "RKV_BUSY");
    assertThrows(() => session.mark(), RecallError, "busy with prefill");
    await first;
  });

  it("refuses use after dispose", async () => {
    const model = await nano();
    const session = model.session({ capacity: 64 });
    session[Symbol.dispose]();
    session[Symbol.dispose]();
    const error = await assertRejects(() => session.prefill([1]), RecallError);
    assertEquals(error.code, "RKV_STALE");
  });

  it("refuses a mark that a rewind has made void, and marks of others", async () => {
    const [model, prompt] = [await nano(), await proseTokens(50)];
    using session = model.session({ capacity: 128 });
    using other = model.session({ capacity: 128 });
    await session.prefill(prompt);
    const early = session.mark();
    await session.prefill([1, 2]);
    const late = session.mark();
    session.rewind(early);
    assertThrows(() => session.rewind(late), RangeError, "no longer");
    assertThrows(() => other.rewind(early), RangeError, "not");
  });

  for (const ahead of [false, true]) {
    it(`ends at its capacity${ahead ? ", reading ahead" : ""}`, async () => {
      const [model, prompt] = [await nano(), await proseTokens(60)];
      using session = model.session({ capacity: 64 });
      await session.prefill(prompt);
      const tokens: number[] = [];
      for await (const { token } of session.decode({ stop: [], ahead })) tokens.push(token);
      assertEquals(tokens.length, 5); // four that fit, and the one that the last of them foretells
      assertEquals(session.length(), 64);
    });
  }

  it("goes on after a stop token that was read ahead, each slot where it ended", async () => {
    const [model, prompts] = [await nano(), [await proseTokens(60), await proseTokens(90, 1)]];
    const run = async (ahead: boolean) => {
      using session = model.session({ capacity: 256, slots: 2 });
      for (const [slot, prompt] of prompts.entries()) await session.prefill(prompt, { slot });
      const seen: number[][] = [[], []];
      for await (const { slot, token } of session.decode({ maxTokens: 12, stop: [], ahead })) seen[slot].push(token);
      const stop = [seen[0][10]]; // what slot 0 says again, sooner or later
      for await (const { slot, token } of session.decode({ maxTokens: 60, stop, ahead })) seen[slot].push(token);
      for await (const { slot, token } of session.decode({ maxTokens: 5, stop: [], ahead })) seen[slot].push(token);
      assert(seen[0].length < 77); // it met the token
      return [seen, session.text(0), session.text(1)];
    };
    assertEquals(await run(true), await run(false));
  });

  it("draws what it would draw in turn when it reads ahead, penalties and all", async () => {
    const [model, prompt] = [await nano(), await proseTokens(60)];
    const sampling = { temperature: 1.2, seed: 7, repetitionPenalty: 1.3, frequencyPenalty: 0.2, logprobs: 2 };
    const run = async (ahead: boolean) => {
      using session = model.session({ capacity: 256 });
      await session.prefill(prompt);
      const seen = [];
      for (const end of [9, 40]) {
        for await (const one of session.decode({ sampling, stop: [], ahead })) if (seen.push(one) === end) break;
      }
      return seen;
    };
    assertEquals(await run(true), await run(false));
  });

  it("leaves nothing running when a loop is left", async () => {
    const [model, prompt] = [await nano(), await proseTokens(60)];
    using session = model.session({ capacity: 256 });
    await session.prefill(prompt);
    for await (const _ of session.decode({ stop: [] })) if (session.length() > 70) break;
    const length = session.length();
    await session.prefill([1]);
    assert(session.length() >= length + 1);
  });

  it("is not left before the step that was begun ahead has ended", async () => {
    let end = (_: Int32Array) => {};
    const read = [Promise.resolve(Int32Array.of(7)), new Promise<Int32Array>((resolve) => end = resolve)];
    const [state, held] = [{ token: { read: () => read.shift() }, logprob: { read: () => [0] } }, [{ tokens: [], next: { token: null } }]];
    const room = { state, held, capacity: 9, sampler: {}, makeRoom: () => true, choose() {}, stepSlots() {}, tell() {} };
    const steps = decodeSteps({ room: room as unknown as SessionRoom, slots: [0], asks: [], maxTokens: 9, stop: [], ahead: true });
    assertEquals((await steps.next()).value, [{ slot: 0, token: 7, logprob: 0 }]);
    let isLeft = false;
    const left = steps.return().then(() => isLeft = true);
    for (let turn = 0; turn < 100; turn++) await Promise.resolve();
    assert(!isLeft);
    end(Int32Array.of(8));
    await left;
  });

  it("counts the rows that were read", async () => {
    const [model, prompt] = [await nano(), await proseTokens(400)];
    using session = model.session({ kv: clusterKV({ budget: 50, tokensPerCluster: 16, exempt: [0, 1] }), capacity: 512 });
    await session.prefill(prompt);
    await decode(session, 11); // ten steps: the first token came with the prefill
    const { steps, sink, index, tail } = await session.attended();
    const { layers, kvHeads } = model.shape;
    assertEquals(steps, 10);
    assertEquals(sink, 10 * (layers - 2) * kvHeads * 16);
    assertEquals(index, 10 * (layers - 2) * kvHeads * 50);
    const grown = Array.from({ length: 10 }, (_, i) => i + 1).reduce((sum, rows) => sum + rows, 0);
    assertEquals(tail, kvHeads * ((layers - 2) * grown + 2 * (4000 + grown)));
  });
});
