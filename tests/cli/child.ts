/** The command line as a child process of this runtime. */
import { spawn } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";

const main = fileURLToPath(new URL("../../lib/cli/main.ts", import.meta.url));
const map = fileURLToPath(new URL("../../lib/std/import_map.json", import.meta.url));
const tool = fileURLToPath(new URL("../../scripts/tool.sh", import.meta.url));
const flags = { deno: ["run", "-A", "--no-check", `--import-map=${map}`], bun: ["run"] };
const own = "Deno" in globalThis ? "deno" : "bun";

/** What the command line prints in a runtime. */
export function printedIn(runtime: "bun" | "deno", args: readonly string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn("sh", [tool, runtime, ...flags[runtime], main, ...args], { stdio: ["ignore", "pipe", "inherit"] });
    let out = "";
    child.stdout.on("data", (data) => out += data);
    child.on("close", (code) => code === 0 ? resolve(out) : reject(new Error(`${runtime} ended with ${code}`)));
  });
}

export interface Ended {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

/** `interrupt`: sends SIGINT when so much was printed. `enough`: closes its stdout after so many characters. */
export function recallkv(args: readonly string[], input = "", interrupt?: (out: string) => boolean, enough = Infinity): Promise<Ended> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [...flags[own], main, ...args], { stdio: ["pipe", "pipe", "pipe"] });
    let [out, err, interrupted] = ["", "", false];
    child.stdout.on("data", (data) => {
      out += data;
      if (out.length > enough) child.stdout.destroy();
      if (interrupted || !interrupt?.(out)) return;
      interrupted = true;
      process.kill(child.pid!, "SIGINT"); // child.kill would make Deno report the signal whatever the child did
    });
    child.stderr.on("data", (data) => err += data);
    child.on("close", (code) => resolve({ code, out, err }));
    child.stdin.end(input);
  });
}
