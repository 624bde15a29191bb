/** Sampling through a session: seeds, batches, replay, penalties, log-probabilities, one's own processor, and what is refused. */
import { assert, assertAlmostEquals, assertEquals, assertMatch, assertNotEquals, assertRejects } from "@std/assert";
import { describe, it } from "node:test";
import type { Sampling, Session, SessionOptions } from "../../mod.ts";
import { nano, proseTokens } from "../support/nano.ts";
import { logprobOf } from "../support/run.ts";

const drawn: Sampling = { temperature: 1.2, topP: 0.98, seed: 7 };

async function tokens(session: Session, sampling: Sampling, count = 24, slot = 0): Promise<number[]> {
  const seen: number[] = [];
  for await (const { token } of session.decode({ sampling, maxTokens: count, stop: [], slots: [slot] })) seen.push(token);
  return seen;
}

async function fresh(sampling: Sampling, options: SessionOptions = {}, prompt = 60, count = 24): Promise<number[]> {
  using session = (await nano()).session({ capacity: 256, ...options });
  await session.prefill(await proseTokens(prompt));
  return await tokens(session, sampling, count);
}

describe("sampling in a session", () => {
  it("says the same with the same seed, eager or replayed, and otherwise with another", async () => {
    const first = await fresh(drawn);
    assertEquals(await fresh(drawn), first);
    assertEquals(await fresh(drawn, { eager: true }), first);
    assertNotEquals(await fresh({ ...drawn, seed: 8 }), first);
    assertNotEquals(await fresh({ temperature: 0 }), first);
    assertEquals(await fresh({ temperature: 1.2, topK: 1 }), await fresh({ temperature: 0 }));
  });

  it("says the same alone and in a batch, each slot with options of its own", async () => {
    const each: Sampling[] = [drawn, { ...drawn, seed: 9, repetitionPenalty: 1.3 }, { temperature: 0 }];
    using session = (await nano()).session({ capacity: 256, slots: 3 });
    for (const [slot] of each.entries()) await session.prefill(await proseTokens(40 + 7 * slot, slot), { slot });
    const seen: number[][] = [[], [], []];
    for await (const { slot, token } of session.decode({ sampling: each, maxTokens: 24, stop: [] })) seen[slot].push(token);
    for (const [slot, sampling] of each.entries()) {
      using alone = (await nano()).session({ capacity: 256 });
      await alone.prefill(await proseTokens(40 + 7 * slot, slot));
      assertEquals(seen[slot], await tokens(alone, sampling));
    }
  });

  it("takes other options from call to call, and goes on as one call would", async () => {
    using session = (await nano()).session({ capacity: 256 });
    await session.prefill(await proseTokens(60));
    const sampling = { ...drawn, frequencyPenalty: 0.7 };
    const pieces = [...await tokens(session, sampling, 5), ...await tokens(session, sampling, 19)];
    assertEquals(pieces, await fresh(sampling));
    const mark = session.mark();
    const on = await tokens(session, sampling, 10);
    session.rewind(mark);
    assertEquals(await tokens(session, sampling, 10), on);
  });

  it("gives log-probabilities of the model, whatever the temperature", async () => {
    using session = (await nano()).session({ capacity: 256 });
    await session.prefill(await proseTokens(60));
    for (let step = 0; step < 4; step++) {
      const logits = step === 0 ? await session.logits() : null;
      for await (const { token, logprob, likeliest } of session.decode({ sampling: { ...drawn, logprobs: 3 }, maxTokens: 1, stop: [] })) {
        const row = logits ?? await session.logits();
        assertAlmostEquals(logprob, logprobOf(row, token), 1e-4);
        const best = [...row.keys()].sort((a, b) => row[b] - row[a] || a - b).slice(0, 3);
        assertEquals(likeliest!.map(({ token }) => token), best);
        for (const each of likeliest!) assertAlmostEquals(each.logprob, logprobOf(row, each.token), 1e-4);
      }
    }
  });

  it("penalizes what was said: a strong penalty never says a token twice, a prompt's tokens count for repetition alone", async () => {
    const once = await fresh({ temperature: 0, presencePenalty: 100 }, {}, 60, 80);
    assertEquals(new Set(once).size, once.length);
    const again = await fresh({ temperature: 0 }, {}, 60, 80);
    assert(new Set(again).size < again.length);
    const prompt = new Set(await proseTokens(60));
    const avoided = await fresh({ temperature: 0, repetitionPenalty: 100 }, {}, 60, 20);
    assert(avoided.every((token) => !prompt.has(token)));
    assert(once.some((token) => prompt.has(token)));
  });

  it("forbids and forces tokens by their logit bias", async () => {
    const [first] = await fresh({ temperature: 0 });
    assert(!(await fresh({ temperature: 0, logitBias: { [first]: -Infinity } })).includes(first));
    assertEquals(new Set(await fresh({ ...drawn, logitBias: { 300: 1e5 } })), new Set([300]));
  });

  it("lets a processor of one's own change the logits before each choice", async () => {
    const greedy = await fresh({ temperature: 0 });
    using session = (await nano()).session({ capacity: 256 });
    await session.prefill(await proseTokens(60));
    const [seen, positions]: [number[], number[]] = [[], []];
    const onLogits = (logits: Float32Array, { position }: { position: number }) => {
      positions.push(position);
      logits[greedy[0]] = -Infinity;
    };
    for await (const { token } of session.decode({ onLogits, maxTokens: 24, stop: [] })) seen.push(token);
    assertEquals(positions, positions.map((_, i) => 60 + i));
    assertEquals(seen, await fresh({ temperature: 0, logitBias: { [greedy[0]]: -Infinity } }));
  });

  const refused: [string, Sampling, RegExp][] = [
    ["NaN", { temperature: NaN }, /Cannot decode: temperature is NaN, want a number from 0 to 1000/],
    ["a probability above 1", { topP: 1.5 }, /Cannot decode: topP is 1.5, want a number from 0 to 1/],
    ["half a token", { topK: 2.5 }, /Cannot decode: topK is 2.5, want a whole number from 0/],
    ["a word for a number", { minP: "0.1" as unknown as number }, /Cannot decode: minP is "0.1", want a number from 0 to 1/],
    ["an unknown option, with the nearest", { temprature: 1 } as Sampling, /unknown option "temprature", want "temperature"/],
    ["a token that is none", { logitBias: { 99999: 1 } }, /a token of logitBias is 99999, want a whole number from 0 to 2047/],
    ["a bias that is none", { logitBias: { 9: NaN } }, /logitBias of token 9 is NaN/],
    ["a seed past 32 bits", { seed: 2 ** 32 }, /seed is 4294967296, want a whole number from 0 to 4294967295/],
    ["too many log-probabilities", { logprobs: 21 }, /logprobs is 21, want a whole number from 0 to 20/],
  ];
  for (const [name, sampling, sentence] of refused) {
    it(`refuses ${name}`, async () => {
      const error = await assertRejects(() => fresh(sampling));
      assertMatch((error as Error).message, sentence);
    });
  }
});
