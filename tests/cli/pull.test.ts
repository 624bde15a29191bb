// Pulling models, against a hub on loopback: what is fetched, gone on with after a break, checked, and refused.
import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { pull } from "../../lib/pull.ts";
import { serveHub } from "./hub.ts";
import { recallkv } from "./child.ts";

const bytes = (count: number, seed: number) => Uint8Array.from({ length: count }, (_, i) => (i * 31 + seed + (i >> 8)) & 255);
const weights = bytes(300_000, 3);
const layout = { "config.json": bytes(90, 1), "tokenizer.json": bytes(5000, 2), "model.safetensors": weights, "README.md": bytes(50, 4) };
const folders: string[] = [];
const folder = () => (folders.push(mkdtempSync(join(tmpdir(), "recallkv-pull-"))), folders.at(-1)!);
after(() => folders.forEach((path) => rmSync(path, { recursive: true })));

describe("pull", () => {
  it("fetches what a layout needs, tells how far it is, and leaves alone what is there", async () => {
    const hub = await serveHub("some/model", layout);
    const to = folder();
    const seen: number[] = [];
    const options = { hub: hub.url, to, onProgress: ({ done, total }: { done: number; total: number }) => void seen.push(done / total) };
    const paths = await pull("some/model", options);
    assertEquals(paths, ["config.json", "tokenizer.json", "model.safetensors"].map((name) => join(to, name)));
    assertEquals(new Uint8Array(readFileSync(paths[2])), weights);
    assertEquals(seen, seen.toSorted((a, b) => a - b));
    assertEquals(seen.at(-1), 1);
    hub.asked.length = 0;
    await pull("some/model", options);
    assertEquals(hub.asked.length, 1, hub.asked.join());
    await hub.close();
  });

  it("goes on where it broke off, at once and in another call", async () => {
    const hub = await serveHub("some/model", { "a.gguf": weights });
    const to = folder();
    hub.breakAfter = 100_000;
    const [path] = await pull("some/model", { hub: hub.url, to });
    assertEquals(new Uint8Array(readFileSync(path)), weights);
    assert(hub.asked.some((line) => /bytes=\d+-/.test(line)), hub.asked.join());
    const other = folder();
    writeFileSync(join(other, "a.gguf.part"), weights.subarray(0, 123_456));
    hub.asked.length = 0;
    await pull("some/model", { hub: hub.url, to: other });
    assertStringIncludes(hub.asked.at(-1)!, "bytes=123456-");
    assertEquals(new Uint8Array(readFileSync(join(other, "a.gguf"))), weights);
    assertEquals(existsSync(join(other, "a.gguf.part")), false);
    await hub.close();
  });

  it("keeps no file whose bytes are not those that the hub tells", async () => {
    const hub = await serveHub("some/model", { "a.gguf": weights, "b.json": bytes(70, 9) }, ["a.gguf", "b.json"]);
    for (const file of ["a.gguf", "b.json"]) {
      const to = folder();
      const error = await assertRejects(() => pull("some/model", { hub: hub.url, to, file }));
      assertStringIncludes((error as Error).message, "do not have the hash");
      assertEquals([existsSync(join(to, file)), existsSync(join(to, `${file}.part`))], [false, false]);
    }
    await hub.close();
  });

  it("names what is not there, with the nearest that is", async () => {
    const hub = await serveHub("some/model", { "model-q8_0.gguf": weights, "model-q4_0.gguf": weights });
    const options = { hub: hub.url, to: folder() };
    assertStringIncludes(
      (await assertRejects(() => pull("some/model", { ...options, file: "model-q8.gguf" }), RangeError)).message,
      'want "model-q8_0.gguf"',
    );
    assertStringIncludes((await assertRejects(() => pull("some/model", options), RangeError)).message, "model-q8_0.gguf, model-q4_0.gguf");
    assertStringIncludes((await assertRejects(() => pull("model", options), RangeError)).message, "want OWNER/NAME");
    assertStringIncludes(((await assertRejects(() => pull("no/model", options))) as Error).message, "Cannot list the files of no/model");
    await hub.close();
    assertStringIncludes(
      ((await assertRejects(() => pull("some/model", options))) as Error).message,
      "Cannot list the files of some/model",
    );
  });

  it("stops with its signal, and what it has stays to go on with", async () => {
    const hub = await serveHub("some/model", { "a.gguf": bytes(4_000_000, 1) });
    const [to, abort] = [folder(), new AbortController()];
    const onProgress = ({ done }: { done: number }) => done > 0 && abort.abort(new Error("enough"));
    await assertRejects(() => pull("some/model", { hub: hub.url, to, signal: abort.signal, onProgress }), Error, "enough");
    assertEquals(existsSync(join(to, "a.gguf")), false);
    assert(readFileSync(join(to, "a.gguf.part")).length > 0);
    await hub.close();
  });

  it("is a command that prints the paths", async () => {
    const hub = await serveHub("some/model", { "a.gguf": weights });
    const to = folder();
    const { code, out, err } = await recallkv(["pull", "some/model", "--hub", hub.url, "--to", to]);
    assertEquals([code, out, err], [0, `${join(to, "a.gguf")}\n`, ""]);
    assertEquals((await recallkv(["pull"])).code, 2);
    await hub.close();
  });
});
