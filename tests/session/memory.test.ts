// Memory that is not there: the error says what was needed and what there is, nothing is lost, and all goes on when there is some.
import { assertEquals, assertLess, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { execFileSync } from "node:child_process";
import process from "node:process";
import { describe, it } from "node:test";
import { RecallError } from "../../mod.ts";
import type { Device } from "../../lib/device.ts";
import { RowKeeper } from "../../lib/kv/keeper.ts";
import { clusterKV } from "../../lib/policies/cluster_kv.ts";
import { nano, proseTokens } from "../support/nano.ts";
import { decode } from "../support/run.ts";

/** Promises itself all but some MiB of what memory there is, without touching it. */
function hog(device: Device): Disposable {
  const most = 1 << 17;
  const arena = device.arena(most * 2 ** 20);
  const tensor = arena.tensor("f32", [most, 1 << 18]); // a row is a MiB
  let held = 0;
  for (let step = most / 2; step >= 1; step /= 2) {
    while (held + step <= most && took(() => tensor.commit(held + step))) held += step;
  }
  tensor.release(0, Math.max(0, held - 16));
  return arena;
}

function took(commit: () => void): boolean {
  try {
    commit();
    return true;
  } catch (error) {
    if (error instanceof RecallError && error.code === "RKV_MEMORY") return false;
    throw error;
  }
}

describe("a session without memory", () => {
  it("refuses a prompt before it reads it, says both numbers, and goes on as it was", async () => {
    const [model, prompt] = [await nano(), await proseTokens(300)];
    const long = Array.from({ length: 120_000 }, (_, i) => prompt[i % 300]);
    using session = model.session({ capacity: 1 << 17, slots: 2, kvDtype: "f32", onWarning() {} });
    using never = model.session({ capacity: 1 << 17, slots: 2, kvDtype: "f32", onWarning() {} });
    for (const one of [session, never]) {
      await one.prefill(prompt, { slot: 0 });
      await decode(one, 5);
    }
    const held = session.memory;
    {
      using _rest = hog(model.device);
      const error = await assertRejects(() => session.prefill(long, { slot: 1 }), RecallError);
      assertEquals(error.code, "RKV_MEMORY");
      assertMatch(
        error.message,
        /^Cannot hold 120,000 more tokens: their rows need [\d,]+ bytes \(\d+ bytes are needed but \d+ are free\)$/,
      );
      assertEquals([session.length(0), session.length(1), session.memory], [304, 0, held]);
      assertEquals(await decode(session, 20, 0), await decode(never, 20, 0));
      assertThrows(() => model.session({ capacity: 1 << 20, kv: clusterKV(), onWarning() {} }), RecallError, "bytes are needed but");
    }
    await session.prefill(prompt, { slot: 1 });
    assertEquals(session.length(1), 300);
  });

  it("yields what it has chosen before it says that there is no room to go on, reading ahead or not", async () => {
    const [model, prompt] = [await nano(), await proseTokens(60)];
    const commit = RowKeeper.prototype.commit;
    const run = async (ahead: boolean) => {
      using session = model.session({ capacity: 256 });
      await session.prefill(prompt);
      const tokens: number[] = [];
      const decode = async () => {
        for await (const { token } of session.decode({ stop: [], ahead })) tokens.push(token);
      };
      RowKeeper.prototype.commit = function (slot, held, more, only) {
        if (held.layers[0].end + more > 70) throw new RecallError("RKV_MEMORY", "commit", "Cannot hold 1 more tokens");
        commit.call(this, slot, held, more, only);
      };
      try {
        await assertRejects(decode, RecallError, "Cannot hold 1 more");
        assertEquals(session.text(), [...prompt, ...tokens]);
      } finally {
        RowKeeper.prototype.commit = commit;
      }
      for await (const { token } of session.decode({ maxTokens: 5, stop: [], ahead })) tokens.push(token);
      return tokens;
    };
    const inTurn = await run(false);
    assertEquals(inTurn.length, 16); // ten that found room, the one that they foretell, and five
    assertEquals(await run(true), inTurn);
  });

  it("leaves nothing behind, however often it is refused", async () => {
    const model = await nano();
    using _rest = hog(model.device);
    const statm = () => execFileSync("cat", [`/proc/${process.pid}/statm`], { encoding: "utf8" }); // Deno reads it itself under -A alone
    const pages = () => process.platform === "linux" ? Number(statm().split(" ")[0]) : 0;
    const before = pages();
    for (let i = 0; i < 50; i++) {
      assertThrows(() => model.session({ capacity: 1 << 20, kv: clusterKV(), onWarning() {} }), RecallError, "bytes are needed but");
    }
    using last = model.device.arena(4096);
    await last.fence(); // what was closed before is gone
    assertLess((pages() - before) * 4096, 2 ** 36); // one such session reserves a third of this
  });
});
