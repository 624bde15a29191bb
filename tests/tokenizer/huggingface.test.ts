// Token ids against an independent tokenizer (tests/golden/README.md), and what a stream of text must never do.
import { assert, assertEquals, assertThrows } from "@std/assert";
import { existsSync, readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { HuggingFaceTokenizer } from "../../lib/tokenizer/huggingface.ts";

interface GoldenString {
  text: string;
  ids: number[];
  plain?: number[];
}

const json = (path: string) => JSON.parse(readFileSync(new URL(`../../${path}`, import.meta.url), "utf8"));

describe("token ids", () => {
  for (const name of ["nano", "mini"]) {
    const tokenizer = new HuggingFaceTokenizer(json(`models/${name}/tokenizer.json`), "<|bos|>");
    const { strings } = json(`tests/golden/tokenizer/${name}.json`) as { strings: GoldenString[] };

    it(`of ${name} are the independent tokenizer's, with control tokens read and as text`, () => {
      for (const { text, ids, plain = ids } of strings) {
        assertEquals(tokenizer.encode(text, { special: true }), ids, JSON.stringify(text));
        assertEquals(tokenizer.encode(text), plain, JSON.stringify(text));
      }
      assert(strings.length > 40);
    });

    it(`of ${name} decode to their text, whole and one by one`, () => {
      for (const { text, ids, plain = ids } of strings) {
        assertEquals(tokenizer.decode(ids, { special: true }), text.toWellFormed());
        const decoder = tokenizer.decoder();
        const pieces = [...plain.map((id) => decoder.push(id)), decoder.end()];
        assertEquals(pieces.join(""), tokenizer.decode(plain));
        for (const piece of pieces) assert(piece.isWellFormed(), `a character was split in ${JSON.stringify(text)}`);
      }
    });
  }
});

describe("the tokenizer", () => {
  const tokenizer = new HuggingFaceTokenizer(json("models/nano/tokenizer.json"), "<|bos|>");

  it("puts bos in front when asked, even of nothing", () => {
    assertEquals(tokenizer.encode("", { bos: true }), [2041]);
    assertEquals(tokenizer.encode("a", { bos: true }), [2041, ...tokenizer.encode("a")]);
  });

  it("hands out no part of a character whose bytes come one by one", () => {
    const decoder = tokenizer.decoder();
    const bytes = [...new TextEncoder().encode("é👍🏽")].map((byte) => tokenizer.tokenToId(byteToken(byte))!);
    const pieces = bytes.map((id) => decoder.push(id));
    assertEquals(pieces, ["", "é", "", "", "", "👍", "", "", "", "🏽"]);
    assertEquals(decoder.end(), "");
  });

  it("shows what is left of a character that was never completed", () => {
    const decoder = tokenizer.decoder();
    assertEquals(decoder.push(tokenizer.tokenToId(byteToken(0xf0))!), "");
    assertEquals(decoder.end(), "\uFFFD");
  });

  it("gives no text for control tokens unless asked", () => {
    assertEquals(tokenizer.decode([2041, 97, 2046]), "a");
    assertEquals(tokenizer.decode([2041, 97, 2046], { special: true }), "<|bos|>a<|end|>");
    assertEquals(tokenizer.decode([]), "");
    assertEquals(tokenizer.decoder().push(2046), "");
  });

  it("keeps text that looks like its own names for control tokens", () => {
    for (const text of ["\uDFFF2046\uDFFF", "\uDFFF", "<|end\uDFFF|>"]) {
      assertEquals(tokenizer.encode(text), tokenizer.encode(text.toWellFormed()));
      assert(tokenizer.encode(text).every((id) => id < 2041));
    }
  });

  it("refuses tokens that are not in the vocabulary", () => {
    assertThrows(() => tokenizer.decode([1, 4096]), RangeError, "there is no token 4,096");
  });
});

const smollm2 = new URL("../../../shared/tokenizers/smollm2/tokenizer.json", import.meta.url);

it("numeric characters beyond 0 to 9 stand alone where a tokenizer isolates digits", {
  skip: existsSync(smollm2) ? false : "SmolLM2's tokenizer.json is not beside the repository",
}, () => {
  const tokenizer = new HuggingFaceTokenizer(JSON.parse(readFileSync(smollm2, "utf8")), null);
  const alone = (text: string) => tokenizer.encode(text).map((id) => tokenizer.decode([id]));
  assertEquals(alone("a½b").at(0), "a");
  assertEquals(alone("12³"), ["1", "2", "³"]);
  const [half] = [tokenizer.encode("½")];
  assertEquals(tokenizer.encode("x½½"), [...tokenizer.encode("x"), ...half, ...half]);
});

/** The vocabulary's spelling of a byte that is no printable ASCII (bytes from 0xa1 on but 0xad stand for themselves). */
function byteToken(byte: number): string {
  if (byte >= 0xa1 && byte !== 0xad) return String.fromCodePoint(byte);
  const shifted = [...Array(256).keys()].filter((b) => !((b >= 33 && b <= 126) || (b >= 161 && b !== 173)));
  return String.fromCodePoint(256 + shifted.indexOf(byte));
}
