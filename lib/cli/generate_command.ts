import process from "node:process";
import { text as readAll } from "node:stream/consumers";
import { generate } from "../generate.ts";
import { load } from "../model.ts";
import { answeringOptions, cacheOptions, loadOptions, samplingOptions } from "./answering.ts";
import { interruptible } from "./interrupt.ts";
import { showProgress } from "./progress.ts";
import { showStats } from "./stats_line.ts";
import { options, textOf, Usage } from "./usage.ts";

/** `recallkv generate PROMPT [options]` */
export async function runGenerate(args: readonly string[]): Promise<void> {
  const { values, switches, rest } = options(args, { string: [...answeringOptions, "file"], boolean: ["json", "stats"] });
  const [loading, cache, sampling] = [loadOptions(values), cacheOptions(values), samplingOptions(values)];
  const prompt = await readPrompt(rest, values.file);
  const stop = interruptible();
  const onProgress = showProgress(process.stderr.isTTY === true);
  try {
    using model = await load(values.model, { ...loading, signal: stop.signal, onProgress });
    const generation = generate(prompt, {
      model,
      ...cache,
      ...sampling,
      ...(switches.stats && { stats: "ops" as const }),
      signal: stop.signal,
      onProgress,
    });
    if (!switches.json) {
      for await (const piece of generation) process.stdout.write(piece);
      process.stdout.write("\n");
    }
    const result = await generation;
    if (!switches.json) showStats(result.stats, switches.stats);
    if (switches.json) process.stdout.write(`${JSON.stringify(result)}\n`);
  } finally {
    onProgress.end();
    stop.end();
  }
}

async function readPrompt(rest: readonly string[], file: string | undefined): Promise<string> {
  if (rest.length > 1) throw new Usage(`generate takes one prompt, found ${rest.length} (put it in quotes)`);
  if (rest.length === 1 && file !== undefined) throw new Usage("generate takes a prompt or --file, found both");
  if (rest.length === 1) return rest[0];
  if (file === undefined && process.stdin.isTTY) throw new Usage("generate wants a prompt, --file PATH, or text on standard input");
  return file === undefined || file === "-" ? await readAll(process.stdin) : await textOf(file);
}
