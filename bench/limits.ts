/** The machine's limits, measured by limits.c in the same run as everything that is compared with them. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

/** GB/s that one thread and all threads read; 10^9 f32, BF16 and byte products and sums per second, where there are instructions for them. */
export interface Limits {
  readonly threads: number;
  readonly read1: number;
  readonly read: number;
  readonly f32?: number;
  readonly bf16?: number;
  readonly bytes?: number;
}

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));

export function measureLimits(threads: number): Limits {
  const folder = mkdtempSync(join(tmpdir(), "recallkv-limits-"));
  try {
    const program = join(folder, "limits");
    const flags = [
      "-O2",
      "-mcpu=native",
      "-fno-sanitize=all",
      here("limits.c"),
      "-lpthread",
      "-o",
      program,
    ];
    execFileSync("sh", [here("../scripts/tool.sh"), "zig", "cc", ...flags], {
      stdio: ["ignore", "ignore", "inherit"],
    });
    return JSON.parse(execFileSync(program, [String(threads)]).toString());
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
