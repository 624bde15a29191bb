// A conversation: nothing is read twice, history may be edited, marks and files bring it back, and no text becomes a control token.
import { assert, assertEquals, assertLess, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { describe, it } from "node:test";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type ChatMessage, clusterKV } from "../../mod.ts";
import { nano } from "../support/nano.ts";

const story = "The mill stood empty. Clara lives in Porto. Nobody asked why. The old man lives in Ghent. ";
const where: ChatMessage = { role: "user", content: story + "Where does Clara live?" };
const options = { maxTokens: 16 };

/** What a fresh conversation answers to the last of some messages. */
async function answerTo(messages: readonly ChatMessage[]): Promise<string> {
  using chat = (await nano()).chat({ messages: messages.slice(0, -1), capacity: 512 });
  return (await chat.send(messages.at(-1)!, options)).text;
}

describe("a chat", () => {
  for (const ahead of [false, true]) {
    it(`answers in pieces, keeps what was said, and reads only what is new${ahead ? ", reading ahead" : ""}`, async () => {
      using chat = (await nano()).chat({ capacity: 512 });
      let pieces = "";
      const first = chat.send(where.content, { ...options, ahead });
      for await (const piece of first) pieces += piece;
      assertEquals((await first).text, pieces);
      assertStringIncludes(pieces, "Clara lives in Porto.");
      assertEquals(chat.messages, [where, { role: "assistant", content: pieces }]);
      const said = chat.messages;
      const { text, stats } = await chat.send("And the old man?", { ...options, ahead });
      assertLess(stats.readTokens, stats.promptTokens / 2);
      assertEquals(text, await answerTo([...said, { role: "user", content: "And the old man?" }]));
    });
  }

  it("holds the token that stopped an answer where that was read ahead, and only there", async () => {
    for (const [ahead, waiting] of [[true, 0], [false, 1]] as const) {
      using chat = (await nano()).chat({ capacity: 512 });
      assertEquals((await chat.send(where, { ...options, ahead, stop: "Porto" })).finishReason, "stop");
      assertEquals(chat.session.text().length - chat.session.length(), waiting);
    }
  });

  it("comes back to a mark for each of many questions, and reads the document once", async () => {
    using chat = (await nano()).chat({
      system: story.repeat(6),
      capacity: 1024,
      kv: clusterKV({ budget: 64, tokensPerCluster: 8, exempt: [] }),
    });
    let read = 0;
    await chat.prefill({ onProgress: ({ done }) => read = done });
    assertEquals(read, chat.session.length());
    const document = chat.mark();
    const answers: string[] = [];
    for (const question of ["Where does Clara live?", "Where does the old man live?", "Where does Clara live?"]) {
      const { text, stats } = await chat.send(question, { ...options, query: "sparse" });
      assertLess(stats.readTokens, 40);
      answers.push(text);
      chat.rewind(document);
      assertEquals(chat.messages.length, 1);
    }
    assertEquals(answers[2], answers[0]);
  });

  it("goes on from an edited history as if it had always been so", async () => {
    using chat = (await nano()).chat({ capacity: 512 });
    await chat.send(where, options);
    await chat.send("Why?", options);
    chat.messages = [{ ...where, content: where.content.replace("Porto", "Lyon") }];
    const messages = [...chat.messages, { role: "user", content: "Where does Clara live?" }];
    assertEquals((await chat.send("Where does Clara live?", options)).text, await answerTo(messages));
    chat.messages = chat.messages.slice(0, 2);
    assertEquals((await chat.send("Why?", options)).text, await answerTo([...messages, { role: "user", content: "Why?" }]));
  });

  it("comes back from a file with what was said, and goes on to the bit", async () => {
    const folder = await mkdtemp(join(tmpdir(), "recallkv-chat-"));
    try {
      const model = await nano();
      using chat = model.chat({ capacity: 512 });
      await chat.send(where, options);
      await chat.save(join(folder, "talk.recall"));
      using other = await model.restoreChat(join(folder, "talk.recall"));
      assertEquals(other.messages, chat.messages);
      const [want, got] = [await chat.send("Why?", options), await other.send("Why?", options)];
      assertEquals(got.tokens, want.tokens);
      assertEquals(got.stats.readTokens, want.stats.readTokens);
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it("never makes control tokens of what users write", async () => {
    const model = await nano();
    using chat = model.chat({ capacity: 512 });
    const control = [...model.tokenizer.special.values()];
    const count = () => chat.session.text().filter((token) => control.includes(token)).length;
    await chat.send("Hello", { maxTokens: 1 });
    const plain = count();
    chat.messages = [];
    await chat.send(`Hello ${[...model.tokenizer.special.keys()].join(" ")} <|end|>`, { maxTokens: 1 });
    assertEquals(count(), plain);
  });

  it("passes what it does not know through untouched: tools' words stay words", async () => {
    using chat = (await nano()).chat({ capacity: 512 });
    chat.messages = [where, { role: "assistant", content: '<tool_call>{"name": "map"}</tool_call>' }];
    await chat.send("Why?", { maxTokens: 2 });
    assertEquals(chat.messages[1].content, '<tool_call>{"name": "map"}</tool_call>');
    assert(chat.messages[3].role === "assistant");
  });

  it("says abort and stays usable when an answer is cut short", async () => {
    using chat = (await nano()).chat({ capacity: 512 });
    const abort = new AbortController();
    const answer = chat.send(where, { signal: abort.signal, maxTokens: 100 });
    for await (const _ of answer) abort.abort();
    assertEquals((await answer).finishReason, "abort");
    assertEquals(chat.messages.length, 2);
    const cut = new AbortController();
    cut.abort();
    assertEquals((await chat.send("Why?", { signal: cut.signal })).tokens, []);
    assertEquals(chat.messages.length, 2);
    chat.messages = [];
    assertStringIncludes((await chat.send(where, options)).text, "Clara lives in Porto.");
  });

  it("refuses what makes no sense with a sentence", async () => {
    const model = await nano();
    assertThrows(() => model.chat({ sytem: "x" } as object), TypeError, 'unknown option "sytem", want "system"');
    using chat = model.chat({ capacity: 32 });
    assertThrows(() => chat.send("x", { topp: 1 } as object), TypeError, 'unknown option "topp", want "topP"');
    assertThrows(() => chat.send([]), TypeError, "a message has no content");
    await assertRejects(async () => await chat.send(story), RangeError, "the capacity is 32");
    assertEquals(chat.messages, []);
  });
});
