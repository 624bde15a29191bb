/** What every policy promises (lib/policies/policy.ts), whatever it selects and wherever it runs: a list, without a test runner. */
import { assertEquals, assertLess } from "@std/assert";
import type { LoadedModel } from "../../lib/model.ts";
import { full } from "../../lib/policies/full.ts";
import { nano, proseTokens } from "../support/nano.ts";
import { decode, fresh, largestDifference } from "../support/run.ts";
import type { Contestant } from "./contestants.ts";

export const capacity = 1024;
export const length = 600;
export const steps = 70;

export interface Clause {
  /** As a sentence whose subject is the policy. */
  readonly name: string;
  run(): Promise<void>;
}

/** The contract of one policy, on the device that `model` is on. */
export function contract({ small, whole }: Contestant, model: () => Promise<LoadedModel> = nano): Clause[] {
  const clause = (name: string, run: () => Promise<void>): Clause => ({ name, run });
  return [
    clause("gives the full attention's logits when its budget holds every row", async () => {
      const [here, prompt] = [await model(), await proseTokens(length)];
      const want = await fresh(here, { kv: full(), capacity, kvDtype: "f32" }, prompt, steps);
      const got = await fresh(here, { kv: whole(), capacity, kvDtype: "f32" }, prompt, steps);
      assertEquals(got.tokens, want.tokens);
      assertLess(largestDifference(got.logits, want.logits), 1e-3);
    }),
    clause("replays what it does eagerly, bit by bit", async () => {
      const [here, prompt] = [await model(), await proseTokens(length)];
      const options = { kv: small(), capacity };
      assertEquals(await fresh(here, options, prompt, steps), await fresh(here, { ...options, eager: true }, prompt, steps));
    }),
    clause("holds through 1,000 generated tokens", async () => {
      const [here, prompt] = [await model(), await proseTokens(300)];
      const { tokens, logits } = await fresh(here, { kv: small(), capacity: 1400 }, prompt, 1000);
      assertEquals([tokens.length, logits.every(Number.isFinite)], [1000, true]);
    }),
    clause("does not depend on its neighbours in a batch", async () => {
      const here = await model();
      const lengths = [length, 37, 411];
      using together = here.session({ kv: small(), capacity, slots: 3 });
      for (const [slot, tokens] of lengths.entries()) await together.prefill(await proseTokens(tokens, slot), { slot });
      const seen: number[][] = [[], [], []];
      for await (const { slot, token } of together.decode({ maxTokens: steps, stop: [] })) seen[slot].push(token);
      for (const [slot, tokens] of lengths.entries()) {
        using alone = here.session({ kv: small(), capacity });
        await alone.prefill(await proseTokens(tokens, slot));
        const want = await decode(alone, steps);
        assertEquals(seen[slot], want.tokens);
        assertEquals(await together.logits({ slot }), want.logits);
      }
    }),
    clause("reads ahead of its caller what it would read in turn, wherever the loop is left", async () => {
      const [here, prompt] = [await model(), await proseTokens(length)];
      using turns = here.session({ kv: small(), capacity });
      await turns.prefill(prompt);
      const want: number[] = [];
      for await (const { token } of turns.decode({ maxTokens: steps, stop: [], ahead: false })) want.push(token);
      using session = here.session({ kv: small(), capacity });
      await session.prefill(prompt);
      const got: number[] = [];
      for (const end of [1, 2, 9, 40, steps]) {
        const most = end < steps ? Infinity : end - got.length;
        for await (const { token } of session.decode({ maxTokens: most, stop: [], ahead: true })) if (got.push(token) === end) break;
        assertEquals(session.text(), [...prompt, ...got]);
      }
      assertEquals(got, want);
      assertEquals([session.tokens(), await session.logits()], [turns.tokens(), await turns.logits()]);
    }),
    clause("comes back to a mark as if nothing had happened", async () => {
      const [here, prompt] = [await model(), await proseTokens(length)];
      const [question, other] = [await proseTokens(30, 3), await proseTokens(300, 4)];
      using session = here.session({ kv: small(), capacity });
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

      using never = here.session({ kv: small(), capacity });
      await never.prefill(prompt);
      await never.prefill(question, { query: "sparse" });
      assertEquals(await decode(never, steps), first);
    }),
  ];
}
