// Threads that were told to stay on a core do; others are left to the system.
import { assertEquals } from "@std/assert";
import process from "node:process";
import { execFileSync } from "node:child_process";
import { describe, it } from "node:test";
import { open, type OpenOptions } from "../../lib/device.ts";

/** Of this process's threads that may run on one core only: that core. Others may end while they are listed. */
function bound(): string[] {
  const all = execFileSync("sh", ["-c", `cat /proc/${process.pid}/task/*/status 2>/dev/null; true`], { encoding: "utf8" }); // Deno reads them itself under -A alone
  return [...all.matchAll(/Cpus_allowed_list:\s*(\S+)/g)].map(([, cores]) => cores).filter((cores) => /^\d+$/.test(cores));
}

async function boundWith(options: OpenOptions): Promise<string[]> {
  using device = await open("cpu", options);
  using arena = device.arena(1 << 20);
  const [position, active] = [arena.tensor("i32", [1]), arena.tensor("i32", [1])];
  device.kernels.advance(position, active);
  await arena.fence();
  return bound();
}

const cores = process.platform === "linux" ? bound().length : -1;
const skip = cores < 0 ? "cores are bound on Linux only" : cores > 0 && "this process may use one core only";

describe("threads of a CPU device", { skip }, () => {
  it("go where the system likes unless they are", async () => {
    assertEquals(await boundWith({ threads: 2 }), []);
  });

  it("stay on a core each when they are pinned", async () => {
    assertEquals(new Set(await boundWith({ threads: 2, pinned: true })).size, 2);
  });
});
