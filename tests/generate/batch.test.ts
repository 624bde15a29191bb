// Several prompts at once, stop texts, sampling, and what bad input gives.
import { assert, assertEquals, assertLess, assertNotEquals, assertRejects, assertThrows } from "@std/assert";
import { mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { clusterKV, full, generate, type GenerateOptions, type Policy, quest } from "../../mod.ts";
import { StopText } from "../../lib/generation.ts";
import { nano } from "../support/nano.ts";

const prompts = ["Once the storm had passed,", "The old man walked down to the harbour and", "Clara lives in"];

describe("generate with several prompts", () => {
  const draws: [string, GenerateOptions][] = [["the likeliest", {}], ["draws", { temperature: 1.1, seed: 11, repetitionPenalty: 1.1 }]];
  for (const [name, sampling] of draws) {
    it(`gives each the text that it gets alone, in whatever slot: ${name}`, async () => {
      const options = { model: await nano(), maxTokens: 16, ...sampling };
      const alone = await Promise.all(prompts.map(async (prompt) => (await generate(prompt, options)).text));
      for (const slots of [1, 2, 3]) {
        const pieces = prompts.map(() => "");
        const generation = generate(prompts, { ...options, slots });
        for await (const { index, text } of generation) pieces[index] += text;
        assertEquals(pieces, alone);
        const results = await generation;
        assertEquals(results.map(({ text }) => text), alone);
        assertEquals(results.map(({ stats }) => stats.generatedTokens), results.map(({ tokens }) => tokens.length));
      }
      assertNotEquals(alone[0], alone[1]);
    });
  }

  it("gives the same when the device reads ahead, to each its own end", async () => {
    const model = await nano();
    const texts = [...prompts, "The mill stood empty. ".repeat(90) + "The old man"];
    const run = async (ahead: boolean) => {
      const kv = clusterKV({ budget: 32, tokensPerCluster: 8, exempt: [0], every: 32 });
      const results = await generate(texts, { model, kv, ahead, slots: 2, maxTokens: 24, stop: [".", " and"], capacity: 800 });
      return results.map(({ text, tokens, finishReason }) => ({ text, tokens, finishReason }));
    };
    const inTurn = await run(false);
    assert(inTurn.some(({ finishReason }) => finishReason === "stop"));
    assertEquals(await run(true), inTurn);
    assertThrows(() => generate("x", { ahead: "yes" as never }), TypeError, 'ahead is "yes", want true or false');
  });

  it("holds for a policy that moves rows, too", async () => {
    const kv = clusterKV({ budget: 32, tokensPerCluster: 8, exempt: [], every: 32 });
    const long = prompts.map((prompt, i) => "The mill stood empty. ".repeat(20 + 3 * i) + prompt);
    const options = { model: await nano(), kv, maxTokens: 12, capacity: 400 };
    const alone: string[] = [];
    for (const prompt of long) alone.push((await generate(prompt, options)).text);
    assertEquals((await generate(long, { ...options, slots: 2 })).map(({ text }) => text), alone);
  });

  it("does not read again what a slot holds from the prompt before, and answers as if it had", async () => {
    const model = await nano();
    const shared = "The mill stood empty. ".repeat(30);
    const endings = ["Once the storm had passed,", "The old man", "Clara lives in"];
    const alone = await Promise.all(endings.map(async (ending) => (await generate(shared + ending, { model, maxTokens: 12 })).tokens));
    const results = await generate(endings.map((ending) => shared + ending), { model, maxTokens: 12, slots: 1 });
    assertEquals(results.map(({ tokens }) => tokens), alone);
    const [first, ...later] = results.map(({ stats }) => stats);
    assertEquals(first.readTokens, first.promptTokens);
    for (const { readTokens, promptTokens } of later) assertLess(readTokens, promptTokens / 10);
  });

  const policies: [string, () => Policy][] = [["full", full], [
    "clusterKV",
    () => clusterKV({ budget: 32, tokensPerCluster: 8, exempt: [], every: 32, segment: 128 }),
  ], ["quest", () => quest({ budget: 64 })]];
  for (const [name, kv] of policies) {
    it(`goes on with some answers while it reads a long prompt for another, to the same ends: ${name}`, async () => {
      const long = "The mill stood empty. ".repeat(170);
      const texts = ["Once the storm had passed,", long + "The old man", long + "Clara lives in"];
      const options = { model: await nano(), kv: kv(), maxTokens: 20, capacity: 1500, temperature: 0.8, seed: 4 };
      const alone: number[][] = [];
      for (const text of texts) alone.push([...(await generate(text, options)).tokens]);
      let [reads, pieces] = [0, 0];
      const onProgress = ({ stage, done, total }: { stage: string; done: number; total: number }) => {
        if (stage === "prefill" && done === total) reads++;
      };
      const generation = generate(texts, { ...options, slots: 2, onProgress });
      for await (const { index } of generation) if (index === 0 && reads === 1) pieces++;
      assert(pieces >= 2, `${pieces} pieces came while the second prompt was read`);
      assertEquals((await generation).map(({ tokens }) => [...tokens]), alone);
    });
  }

  it("ends when its loop is left while a prompt is read beside", async () => {
    const model = await nano();
    const texts = ["Once the storm had passed,", "The mill stood empty. ".repeat(400)];
    let told = 0;
    const generation = generate(texts, { model, maxTokens: 40, slots: 2, onWarning() {}, onProgress: () => told++ });
    for await (const _ of generation) break;
    const results = await generation;
    assertEquals(results.map(({ finishReason }) => finishReason), ["abort", "abort"]);
    assertEquals(results[1].tokens, []);
    const then = told;
    await generate("x", { model, maxTokens: 3 });
    assertEquals(told, then);
  });

  it("says abort for what is read and what goes on beside it", async () => {
    const abort = new AbortController();
    const texts = ["Once the storm had passed,", "The mill stood empty. ".repeat(400)];
    const options = { model: await nano(), maxTokens: 40, slots: 2, onWarning() {}, signal: abort.signal };
    const generation = generate(texts, options);
    for await (const _ of generation) abort.abort();
    assertEquals((await generation).map(({ finishReason }) => finishReason), ["abort", "abort"]);
  });

  it("tells the time of ops where it is asked to, and of choosing and reading always", async () => {
    const kv = clusterKV({ budget: 32, tokensPerCluster: 8, exempt: [0], every: 32 });
    const options = { model: await nano(), kv, maxTokens: 8 };
    const prompt = "The mill stood empty. ".repeat(60);
    const plain = (await generate(prompt, options)).stats;
    const { share, clusters, promptTokens } = plain;
    assert(share && share.select > 0 && share.attend > 0 && share.select + share.attend < 1, JSON.stringify(share));
    assertEquals(clusters, Math.round((promptTokens - 16) / 8));
    assertEquals(plain.ops, undefined);
    const { ops } = (await generate(prompt, { ...options, stats: "ops" })).stats;
    assertEquals([ops!.centroidScores.runs, ops!.attend.runs], [7 * (options.model.shape.layers - 1), 7 * options.model.shape.layers]);
    assert(Object.values(ops!).every(({ runs, seconds }) => runs > 0 && seconds >= 0));
    assertEquals(ops!.attendChunk, undefined); // of the prompt
    assertEquals((await generate(prompt, { model: options.model, maxTokens: 4 })).stats.clusters, 0);
    assertThrows(() => generate("x", { stats: "all" as never }), RangeError, 'stats is "all", want "ops"');
  });

  it("takes messages and token ids as prompts, alone and mixed", async () => {
    const model = await nano();
    const messages = [{ role: "user", content: "Where does Clara live?" }];
    const ids = model.checkpoint.chat!.encode(model.tokenizer, messages);
    const [a, b] = await generate([messages, ids], { model, maxTokens: 12 });
    assertEquals(a.tokens, b.tokens);
    assertEquals((await generate(messages, { model, maxTokens: 12 })).tokens, a.tokens);
    assertEquals((await generate(ids, { model, maxTokens: 12 })).tokens, a.tokens);
  });

  it("says abort for all that had not ended", async () => {
    const abort = new AbortController();
    const generation = generate(prompts, { model: await nano(), slots: 1, maxTokens: 30, signal: abort.signal });
    let pieces = 0;
    for await (const _ of generation) if (++pieces === 4) abort.abort();
    assertEquals((await generation).map(({ finishReason }) => finishReason), ["abort", "abort", "abort"]);
    assertEquals((await generation).map(({ tokens }) => tokens.length > 0), [true, false, false]);
  });
});

describe("stop", () => {
  it("holds back what may be the beginning of a stop text, and never shows one", () => {
    const stop = new StopText(["END", "\n\n"]);
    assertEquals(["a EN", "DLESS", " no"].map((piece) => stop.push(piece)), ["a ", "", ""]);
    assert(stop.isStopped);
    const other = new StopText(["END"]);
    assertEquals([other.push("a E"), other.push("Nd"), other.push("E"), other.end()], ["a ", "ENd", "", "E"]);
    const nested = new StopText(["aab"]);
    assertEquals([nested.push("a"), nested.push("a"), nested.push("a"), nested.push("b"), nested.end()], ["", "", "a", "", ""]);
  });

  it("ends at a text, wherever tokens are cut, and leaves it out", async () => {
    const options = { model: await nano(), maxTokens: 40 };
    const { text } = await generate(prompts[0], options);
    const place = text.indexOf(" ", 12) + 2; // inside a word
    const stopped = await generate(prompts[0], { ...options, stop: [text.slice(place, place + 5), "never said"] });
    assertEquals(stopped.text, text.slice(0, text.indexOf(text.slice(place, place + 5))));
    assertEquals(stopped.finishReason, "stop");
    let pieces = "";
    for await (const piece of generate(prompts[0], { ...options, stop: text.slice(place, place + 5) })) pieces += piece;
    assertEquals(pieces, stopped.text);
  });

  it("ends at a token", async () => {
    const options = { model: await nano(), maxTokens: 20 };
    const { tokens } = await generate(prompts[0], options);
    const stopped = await generate(prompts[0], { ...options, stop: tokens[5] });
    assertEquals(stopped.tokens, tokens.slice(0, tokens.indexOf(tokens[5]) + 1));
    assertEquals(stopped.finishReason, "stop");
  });
});

describe("generate", () => {
  it("gives pieces of whole characters that make up the text, and no control token", async () => {
    const options = { model: await nano(), maxTokens: 60, temperature: 6, seed: 5, stop: [] };
    const generation = generate("Where", options);
    const pieces: string[] = [];
    for await (const piece of generation) pieces.push(piece);
    const { text, tokens } = await generation;
    assertEquals(pieces.join(""), text);
    assert(pieces.every((piece) => piece !== "" && piece.isWellFormed()));
    assertEquals(text, options.model.tokenizer.decode(tokens));
    for (const control of options.model.tokenizer.special.keys()) assert(!text.includes(control));
  });

  it("draws as the model's makers say where nobody says otherwise", async () => {
    const folder = mkdtempSync(join(tmpdir(), "recallkv-drawn-"));
    try {
      const nanoFolder = fileURLToPath(new URL("../../models/nano/", import.meta.url));
      for (const name of readdirSync(nanoFolder)) symlinkSync(join(nanoFolder, name), join(folder, name));
      const file = join(folder, "generation_config.json");
      const said = JSON.parse(readFileSync(file, "utf8"));
      rmSync(file);
      writeFileSync(file, JSON.stringify({ ...said, do_sample: true, temperature: 1.2, top_k: 40 }));
      const options = { maxTokens: 12, seed: 3 };
      const drawn = (await generate(prompts[0], { model: folder, ...options })).tokens;
      assertEquals(drawn, (await generate(prompts[0], { model: await nano(), ...options, temperature: 1.2, topK: 40 })).tokens);
      const greedy = (await generate(prompts[0], { model: folder, ...options, temperature: 0 })).tokens;
      assertEquals(greedy, (await generate(prompts[0], { model: await nano(), ...options })).tokens);
      assertNotEquals(greedy, drawn);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it("tells log-probabilities where they are asked for", async () => {
    const { logprobs, tokens } = await generate(prompts[0], { model: await nano(), maxTokens: 5, logprobs: 2 });
    assertEquals(logprobs!.map(({ token }) => token), tokens);
    for (const { likeliest, token, logprob } of logprobs!) {
      assertEquals(likeliest[0], { token, logprob: likeliest[0].logprob }, String(logprob));
    }
    assertEquals((await generate(prompts[0], { model: await nano(), maxTokens: 2 })).logprobs, undefined);
  });

  it("lets timers run while it works", async () => {
    let ticks = 0;
    const timer = setInterval(() => ticks++, 5);
    const began = performance.now();
    await generate("The mill stood empty. ".repeat(150), { model: await nano(), maxTokens: 60 });
    clearInterval(timer);
    const wanted = (performance.now() - began) / 5;
    assert(ticks > wanted / 8, `${ticks} ticks of ${wanted}`);
  });

  it("stops within 200 ms while it reads a prompt", async () => {
    const abort = new AbortController();
    let [aborted, said] = [0, false];
    const prompt = "The mill stood empty. ".repeat(300);
    const result = await generate(prompt, {
      model: await nano(),
      signal: abort.signal,
      onWarning() {},
      onProgress({ stage }) {
        if (stage !== "prefill" || said) return;
        said = true;
        aborted = performance.now();
        abort.abort();
      },
    });
    assertEquals([result.finishReason, result.text, result.tokens], ["abort", "", []]);
    assertLess(performance.now() - aborted, 200);
  });

  it("runs nothing on when its loop is left", async () => {
    const model = await nano();
    const before = model.device.memory().free;
    for (let i = 0; i < 20; i++) for await (const _ of generate(prompts[0], { model, maxTokens: 400, capacity: 2048 })) break;
    assertLess(before - model.device.memory().free, 200 << 20); // 20 sessions would hold more
  });

  it("makes lone surrogates whole, and refuses prompts without a token", async () => {
    const options = { model: await nano(), maxTokens: 3 };
    assertEquals((await generate("a \ud800 b", options)).tokens, (await generate("a \ufffd b", options)).tokens);
    await assertRejects(async () => await generate("", { ...options, special: true }), RangeError, "the prompt has no tokens");
    await assertRejects(async () => await generate([99999], options), RangeError, "token 99999 is not in the vocabulary");
  });

  it("warns once of a text past the trained context, with both numbers, and of nothing else", async () => {
    const model = await nano();
    const warnings: string[] = [];
    const onWarning = (sentence: string) => warnings.push(sentence);
    await generate("Once", { model, maxTokens: 2, capacity: model.shape.trainedContext + 1, onWarning });
    await generate("Once", { model, maxTokens: 2, onWarning });
    assertEquals(warnings, ["capacity of 2,049 is past the model's trained context of 2,048 tokens"]);
  });

  it("takes any bytes for text, and no character apart", async () => {
    const model = await nano();
    const text = new TextDecoder().decode(Uint8Array.of(0x61, 0xff, 0xfe, 0x20, 0xe2, 0x82, 0x62)); // invalid UTF-8, as a file gives it
    const { stats } = await generate(text, { model, maxTokens: 2 });
    assertEquals(stats.promptTokens, model.tokenizer.encode(text, { bos: model.shape.addBos }).length);
    assertEquals(model.tokenizer.decode(model.tokenizer.encode(text)), text);
  });

  it("drops the front of a prompt only when it is told", async () => {
    const model = await nano();
    const tokens = model.tokenizer.encode("The mill stood empty. ".repeat(40));
    const refusal = await assertRejects(async () => await generate(tokens, { model, capacity: 50, maxTokens: 4 }), RangeError);
    assertEquals(refusal.message.includes(`${tokens.length} tokens`) && refusal.message.includes("dropFront: true"), true, refusal.message);
    const { stats } = await generate(tokens, { model, capacity: 50, maxTokens: 4, dropFront: true });
    assertEquals(stats.promptTokens, 49);
  });

  const refused: [string, unknown, ErrorConstructor, string][] = [
    ["an unknown option, with the nearest", { maxtokens: 3 }, TypeError, 'unknown option "maxtokens", want "maxTokens"'],
    ["an option that is like none", { flavour: 3 }, TypeError, 'unknown option "flavour", want one of'],
    ["NaN", { temperature: NaN }, RangeError, "temperature is NaN"],
    ["a stop text of length 0", { stop: [""] }, RangeError, "stop has an empty text"],
    ["a stop that is neither", { stop: [null] }, TypeError, "stop has null, want texts and token ids"],
    ["a signal that is none", { signal: {} }, TypeError, "signal is an object, want an AbortSignal"],
    ["no slots", { slots: 0 }, RangeError, "slots is 0, want a whole number from 1 to 64"],
    ["options that are none", null, TypeError, "options are null"],
  ] as never;
  for (const [name, options, kind, sentence] of refused) {
    it(`refuses ${name}`, () => {
      assertThrows(() => generate("x", options as GenerateOptions), kind as new () => Error, sentence);
    });
  }

  it("refuses messages where the template does, and passes its reason on", async () => {
    const model = await nano();
    await assertRejects(
      async () => await generate([{ role: "a b", content: "" }], { model }),
      RangeError,
      "Cannot apply the chat template",
    );
  });
});
