/** The machine's limits, measured by limits.c in the same run as everything that is compared with them. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
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

let folder: string | null = null;

/** The program, compiled for this machine once. */
function program(): string {
  if (folder === null) {
    folder = mkdtempSync(join(tmpdir(), "recallkv-limits-"));
    const flags = ["-O2", "-mcpu=native", "-fno-sanitize=all", here("limits.c"), "-lpthread", "-o", join(folder, "limits")];
    execFileSync("sh", [here("../scripts/tool.sh"), "zig", "cc", ...flags], { stdio: ["ignore", "ignore", "inherit"] });
    process.on("exit", () => rmSync(folder!, { recursive: true, force: true }));
  }
  return join(folder, "limits");
}

export function measureLimits(threads: number): Limits {
  return JSON.parse(execFileSync(program(), [String(threads)]).toString());
}

/** GB/s that all threads read now: on a virtual machine it depends on the neighbours, and may double within minutes. */
export function measureRead(threads: number): number {
  return JSON.parse(execFileSync(program(), [String(threads), "read"]).toString()).read;
}
