// Tokenizers made of GGUF vocabularies: the pairs that llama.cpp keeps beside its vocabulary files, and the project's own.
import { assert, assertEquals, assertThrows } from "@std/assert";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { FormatError } from "../../lib/formats/checkpoint.ts";
import { readGguf } from "../../lib/formats/gguf.ts";
import type { GgufMetadata, GgufValue } from "../../lib/formats/gguf_values.ts";
import { readGgufTokenizer } from "../../lib/tokenizer/gguf.ts";
import { HuggingFaceTokenizer } from "../../lib/tokenizer/huggingface.ts";

const folder = fileURLToPath(new URL("../../../shared/tokenizers/gguf_vocab", import.meta.url));
const vocabularies = existsSync(folder) ? readdirSync(folder).filter((name) => name.endsWith(".gguf")) : [];
const skip = vocabularies.length > 0 ? false : "llama.cpp's vocabulary files are not beside the repository";

describe("every line of llama.cpp's pairs", { skip }, () => {
  for (const name of vocabularies) {
    it(`${name} gives the same tokens, and they give back the text`, async () => {
      const { metadata } = await readGguf(`${folder}/${name}`);
      const { tokenizer } = readGgufTokenizer(name, metadata);
      const texts = readFileSync(`${folder}/${name}.inp`, "utf8").split("\n__ggml_vocab_test__\n");
      const wanted = readFileSync(`${folder}/${name}.out`, "utf8").split("\n").map((line) =>
        line.trim().split(/\s+/).filter(Boolean).map(Number)
      );
      for (const [i, text] of texts.entries()) {
        const ids = tokenizer.encode(text);
        assertEquals(ids, wanted[i], JSON.stringify(text));
        assertEquals(tokenizer.decode(ids), text);
        const decoder = tokenizer.decoder();
        assertEquals([...ids.map((id) => decoder.push(id)), decoder.end()].join(""), text);
      }
      assert(texts.length > 40);
    });
  }
});

const json = (path: string) => JSON.parse(readFileSync(new URL(`../../${path}`, import.meta.url), "utf8"));

it("mini's GGUF vocabulary is its tokenizer.json", async () => {
  const path = fileURLToPath(new URL("../../models/mini/model-q8_0.gguf", import.meta.url));
  const { tokenizer, chat, bos, eos, addBos } = readGgufTokenizer(path, (await readGguf(path)).metadata);
  const { strings, chats } = json("tests/golden/tokenizer/mini.json");
  for (const { text, ids, plain = ids } of strings) {
    assertEquals(tokenizer.encode(text, { special: true }), ids);
    assertEquals(tokenizer.encode(text), plain);
  }
  for (const { messages, addGenerationPrompt, text } of chats) assertEquals(chat!.render(messages, { addGenerationPrompt }), text);
  assertEquals(tokenizer.special, new HuggingFaceTokenizer(json("models/mini/tokenizer.json"), null).special);
  assertEquals({ bos, eos, addBos }, { bos: 16377, eos: [16382, 16378], addBos: true });
});

describe("a small SentencePiece vocabulary", () => {
  const tokens = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁a", "▁ab", "<0xC3>", "<0xA9>", "<sep>"];
  const sound: Record<string, GgufValue> = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.scores": Float32Array.of(0, 0, 0, -9, -8, -7, -1, -2, -3, 0, 0, 0),
    "tokenizer.ggml.token_type": Int32Array.of(2, 3, 3, 1, 1, 1, 1, 1, 1, 6, 6, 4),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
  };
  const read = (changed: Record<string, GgufValue | undefined> = {}) =>
    readGgufTokenizer(
      "x.gguf",
      new Map(Object.entries({ ...sound, ...changed }).filter(([, value]) => value !== undefined)) as GgufMetadata,
    );

  it("joins by score, puts a space in front, and falls back to bytes", () => {
    const { tokenizer, bos, eos, addBos } = read();
    assertEquals(tokenizer.encode("ab"), [8]);
    assertEquals(tokenizer.encode("a"), [7]);
    assertEquals(tokenizer.encode("é"), [3, 9, 10]);
    assertEquals(tokenizer.encode("aé", { bos: true }), [1, 7, 9, 10]);
    assertEquals(tokenizer.decode([1, 8, 9, 10, 3]), "abé ");
    assertEquals({ bos, eos, addBos }, { bos: 1, eos: [2], addBos: true });
  });

  it("gives no part of a character that comes in bytes", () => {
    const decoder = read().tokenizer.decoder();
    assertEquals([8, 9, 10, 9, 10, 8].map((id) => decoder.push(id)), ["ab", "", "é", "", "é", " ab"]);
  });

  it("leaves the space away where the file says so, and joins what users wrote to no control token", () => {
    const { tokenizer } = read({ "tokenizer.ggml.add_space_prefix": false, "tokenizer.ggml.add_bos_token": false });
    assertEquals(tokenizer.encode("ab"), [6]);
    assertEquals(tokenizer.encode("a<sep>b"), [4, 11, 5]);
    assertEquals(tokenizer.encode("<s>", { special: true }), [1]);
    assert(!tokenizer.encode("<s>").includes(1));
  });

  const refusals: [changed: Record<string, GgufValue | undefined>, word: string][] = [
    [{ "tokenizer.ggml.model": "bert" }, 'tokenizer.ggml.model is "bert", supported: gpt2'],
    [{ "tokenizer.ggml.model": undefined }, "tokenizer.ggml.model is undefined"],
    [{ "tokenizer.ggml.tokens": undefined }, "tokenizer.ggml.tokens is not there"],
    [{ "tokenizer.ggml.tokens": [] }, "tokenizer.ggml.tokens is no list of texts"],
    [{ "tokenizer.ggml.scores": undefined }, "tokenizer.ggml.scores is not a number for each of 12 tokens"],
    [{ "tokenizer.ggml.token_type": Int32Array.of(1) }, "tokenizer.ggml.token_type is not a number for each of 12 tokens"],
    [{ "tokenizer.ggml.bos_token_id": 12 }, "tokenizer.ggml.bos_token_id is 12"],
    [
      { "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "chameleon", "tokenizer.ggml.merges": ["a b"] },
      'tokenizer.ggml.pre is "chameleon", supported: gpt-2',
    ],
    [{ "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2" }, "tokenizer.ggml.merges is not there"],
    [{ "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.merges": ["ab"] }, 'tokenizer.ggml.merges has "ab"'],
    [{ "tokenizer.ggml.remove_extra_whitespaces": true }, "tokenizer.ggml.remove_extra_whitespaces is true"],
  ];
  for (const [changed, word] of refusals) {
    it(`is refused with ${JSON.stringify(changed)}`, () => {
      assertThrows(() => read(changed), FormatError, word);
    });
  }
});
