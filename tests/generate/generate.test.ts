// generate(): one object, iterated or awaited; how it ends; what it refuses.
import { assert, assertEquals, assertGreater, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { describe, it } from "node:test";
import { clusterKV, generate, h2o } from "../../mod.ts";
import { nano } from "../support/nano.ts";

const question = "<|bos|>The mill stood empty. Clara lives in Porto. Nobody asked why.<|user|>Where does Clara live?<|end|><|assistant|>";

describe("generate", () => {
  it("gives the same text in pieces and whole", async () => {
    const generation = generate("Once the storm had passed,", { maxTokens: 12 });
    let pieces = "";
    for await (const piece of generation) pieces += piece;
    const result = await generation;
    assertEquals(result.text, pieces);
    assertEquals(result.tokens.length, 12);
    assertEquals(result.finishReason, "length");
    assertEquals((await generate("Once the storm had passed,", { maxTokens: 12 })).text, pieces);
  });

  it("ends with the model's end token and leaves it out of the text", async () => {
    const { text, finishReason, tokens } = await generate(question, { model: await nano(), special: true, maxTokens: 40 });
    assertEquals(text.trim(), "Clara lives in Porto.");
    assertEquals(finishReason, "stop");
    assert((await nano()).shape.eos.includes(tokens.at(-1)!));
  });

  it("takes control tokens in the prompt as text unless it is told", async () => {
    const model = await nano();
    assert(!model.tokenizer.encode("<|end|>").includes(model.tokenizer.special.get("<|end|>")!));
    assertEquals(model.tokenizer.encode("<|end|>", { special: true }), [model.tokenizer.special.get("<|end|>")!]);
  });

  it("stops with the signal, without an exception", async () => {
    const abort = new AbortController();
    const generation = generate("Once the storm had passed,", { maxTokens: 500, signal: abort.signal });
    let pieces = 0;
    for await (const _ of generation) if (++pieces === 5) abort.abort();
    const { finishReason, tokens } = await generation;
    assertEquals(finishReason, "abort");
    assert(tokens.length < 20, `${tokens.length} tokens`);
  });

  it("ends when its loop is left", async () => {
    const generation = generate("Once the storm had passed,", { maxTokens: 500 });
    for await (const _ of generation) break;
    const { finishReason, tokens } = await generation;
    assertEquals(finishReason, "abort");
    assert(tokens.length < 5);
  });

  it("says what it read", async () => {
    const kv = clusterKV({ budget: 32, tokensPerCluster: 8, exempt: [], every: 32 });
    const { stats } = await generate("The old man walked down to the harbour. ".repeat(40), { kv, maxTokens: 10 });
    assertGreater(stats.promptTokens, 300);
    assertEquals(stats.budget, 32);
    assertEquals(stats.attendedRows.sink, 16);
    assertEquals(stats.attendedRows.index, 32);
    assert(stats.bytesPerStep < stats.fullBytesPerStep / 2);
    assertEquals(stats.heldRows, stats.promptTokens + 9); // the last token was not fed
    const dropped = await generate("The old man walked down to the harbour. ".repeat(40), { kv: h2o({ budget: 64 }), maxTokens: 10 });
    assertEquals(dropped.stats.heldRows, 64);
  });

  it("refuses what it cannot do with a sentence", async () => {
    assertThrows(() => generate(5 as unknown as string), TypeError, "prompt is number");
    assertThrows(() => generate([]), RangeError, "prompt is an empty array");
    assertThrows(() => generate([1, "a"] as unknown as number[]), TypeError, 'prompt has "a"');
    assertThrows(() => generate("x", { maxTokens: 0 }), RangeError, "maxTokens is 0");
    const error = await assertRejects(() => Promise.resolve(generate("a ".repeat(50), { capacity: 10 })), RangeError);
    assertStringIncludes(error.message, "capacity is 10");
  });

  it("refuses a second loop over the same pieces", async () => {
    const generation = generate("Once", { maxTokens: 3 });
    const first = generation[Symbol.asyncIterator]();
    assertThrows(() => generation[Symbol.asyncIterator](), TypeError, "twice");
    await first.return(undefined);
  });
});
