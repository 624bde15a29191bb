// The CUDA device: skipped, with the reason, where there is none.
import { assertEquals, assertMatch } from "@std/assert";
import { describe, it } from "node:test";
import { open } from "../../lib/device.ts";
import { checks, cuda } from "./checks.ts";

const missing = await cuda().then(() => null, (error: { message: string; code?: string }) => error);

describe("cuda", () => {
  for (const { group, name, run } of checks) it(`${group}: ${name}`, { skip: missing?.message }, run);

  it("says in one sentence what is missing, and auto takes the CPU", { skip: missing ? false : "nothing is missing" }, async () => {
    assertEquals(missing!.code, "RKV_DEVICE");
    assertMatch(missing!.message, /^Cannot open cuda: .*(built without CUDA kernels|no NVIDIA driver|no NVIDIA GPU)/);
    using device = await open("auto");
    assertEquals(device.kind, "cpu");
  });
});
