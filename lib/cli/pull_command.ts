import process from "node:process";
import { interruptible } from "./interrupt.ts";
import { showProgress } from "./progress.ts";
import { options, Usage } from "./usage.ts";

/** `recallkv pull OWNER/NAME [FILE]` */
export async function runPull(args: readonly string[]): Promise<void> {
  const { values, rest } = options(args, { string: ["to", "revision", "hub"], boolean: [] });
  if (rest.length < 1 || rest.length > 2) throw new Usage(`pull wants OWNER/NAME and perhaps a FILE, found ${rest.length} words`);
  if (!/^[^/]+\/[^/]+$/.test(rest[0])) throw new Usage(`pull wants OWNER/NAME, found "${rest[0]}"`);
  const { pull } = await import("../pull.ts"); // the only one that needs the hub's library
  const stop = interruptible(new Error("interrupted (run it again to go on)"));
  const onProgress = showProgress(process.stderr.isTTY === true);
  try {
    const { to, revision, hub } = values;
    for (const path of await pull(rest[0], { file: rest[1], to, revision, hub, signal: stop.signal, onProgress })) {
      process.stdout.write(`${path}\n`);
    }
  } finally {
    onProgress.end();
    stop.end();
  }
}
