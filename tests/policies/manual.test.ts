// The policies that lib/policies/README.md builds step by step, as they stand there.
import { assert, assertEquals, assertLess } from "@std/assert";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { describe, it } from "node:test";
import { full, type Policy } from "../../mod.ts";
import { decode, fresh, largestDifference } from "../support/run.ts";
import { nano, proseTokens } from "../support/nano.ts";

const manual = readFileSync(new URL("../../lib/policies/README.md", import.meta.url), "utf8");
const blocks = [...manual.matchAll(/```ts\n([\s\S]*?)```/g)].map(([, code]) => code);

/** Imports a block of code; it lies beside the policies while it is read. */
async function imported<T>(code: string, name: string): Promise<T> {
  const folder = new URL(`../../zig-out/manual-${Math.random().toString(36).slice(2)}/`, import.meta.url);
  mkdirSync(folder, { recursive: true });
  const file = new URL(`${name}.ts`, folder);
  writeFileSync(file, code.replace(/from "recallkv"/g, 'from "../../mod.ts"'));
  try {
    return (await import(file.href))[name] as T;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

describe("the manual's policies", () => {
  it("recent reads the last rows, and all of them where it may", async () => {
    const recent = await imported<(rows: number) => Policy>(blocks[0], "recent");
    const [model, prompt] = [await nano(), await proseTokens(400)];
    using session = model.session({ kv: recent(50), capacity: 512 });
    await session.prefill(prompt);
    await decode(session, 20);
    const { steps, sink, index, tail } = await session.attended();
    const perStep = (rows: number) => rows / steps / 18; // 6 layers of 3 KV heads
    assertEquals([perStep(sink), index], [4, 0]);
    assert(perStep(tail) > 50 && perStep(tail) <= 52, String(perStep(tail)));
    const want = await fresh(model, { kv: full(), capacity: 512 }, prompt, 10);
    assertEquals((await fresh(model, { kv: recent(512), capacity: 512 }, prompt, 10)).tokens, want.tokens);
  });

  it("firstChannels ranks by what it says, and is exact with all channels and rows", async () => {
    const firstChannels = await imported<(channels: number, budget: number) => Policy>(blocks[1], "firstChannels");
    const [model, prompt] = [await nano(), await proseTokens(400)];
    const want = await fresh(model, { kv: full(), capacity: 512, kvDtype: "f32" }, prompt, 40);
    const got = await fresh(model, { kv: firstChannels(32, 512), capacity: 512, kvDtype: "f32" }, prompt, 40);
    assertLess(largestDifference(got.logits, want.logits), 1e-3);
    const few = { kv: firstChannels(8, 60), capacity: 512 };
    assertEquals(await fresh(model, few, prompt, 40), await fresh(model, { ...few, eager: true }, prompt, 40));
  });
});
