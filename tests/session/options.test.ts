// What nobody knows is named, with the nearest that somebody does; what makes no sense is refused before anything is done.
import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { describe, it } from "node:test";
import { load } from "../../mod.ts";
import { policies } from "../../lib/policies/mod.ts";
import { nano } from "../support/nano.ts";

describe("options", () => {
  it("of every policy are known, or refused by name", () => {
    for (const [name, policy] of Object.entries(policies)) {
      const make = policy as (options: object) => unknown;
      if (name === "full") continue;
      assertThrows(() => make({ flavour: 1 }), TypeError, `Cannot use ${name}: unknown option "flavour", want one of`);
    }
    assertThrows(() => policies.clusterKV({ budgt: 8 } as never), TypeError, 'unknown option "budgt", want "budget"');
  });

  it("of a session, of reading and of decoding, too", async () => {
    const model = await nano();
    const wrong: [object, new (message: string) => Error, string][] = [
      [{ capcity: 8 }, TypeError, 'unknown option "capcity", want "capacity"'],
      [{ kvDtype: "f17" }, RangeError, 'kvDtype is "f17", want "f32" or "f16"'],
      [{ capacity: NaN }, RangeError, "capacity NaN"],
      [{ slots: 0.5 }, RangeError, "slots 0.5"],
      [{ chunk: 0 }, RangeError, "chunk 0"],
    ];
    for (const [options, kind, sentence] of wrong) assertThrows(() => model.session(options as never), kind, sentence);
    assertThrows(() => model.chat({ sytem: "x" } as never), TypeError, 'want "system"');
    using session = model.session({ capacity: 64 });
    const asked: [() => unknown, new (message: string) => Error, string][] = [
      [() => session.prefill([1], { slto: 0 } as never), TypeError, 'unknown option "slto", want "slot"'],
      [() => session.prefill([1], { query: "sparce" as never }), RangeError, 'query is "sparce", want "dense" or "sparse"'],
      [() => session.decode({ maxTokns: 1 } as never).next(), TypeError, 'want "maxTokens"'],
      [() => session.decode({ maxTokens: NaN }).next(), RangeError, "maxTokens is NaN"],
      [() => session.decode({ ahead: 1 as never }).next(), TypeError, "ahead is 1, want true or false"],
      [() => load("nowhere", { devise: "cpu" } as never), TypeError, 'want "device"'],
      [() => load("nowhere", { device: "gpu" as never }), RangeError, 'device is "gpu", want "auto" or "cpu" or "cuda"'],
    ];
    for (const [ask, kind, sentence] of asked) await assertRejects(async () => await ask(), kind, sentence);
    assertEquals(session.length(), 0);
  });
});
