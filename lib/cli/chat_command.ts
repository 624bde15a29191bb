import process from "node:process";
import { createInterface } from "node:readline";
import type { Chat } from "../chat.ts";
import type { GenerateStats } from "../generation.ts";
import { load } from "../model.ts";
import { answeringOptions, cacheOptions, loadOptions, samplingOptions } from "./answering.ts";
import { showProgress } from "./progress.ts";
import { showStats } from "./stats_line.ts";
import { options, textOf, Usage } from "./usage.ts";

/** `recallkv chat [options]`: a line is a message; Ctrl-C ends an answer, and the conversation where none is under way. */
export async function runChat(args: readonly string[]): Promise<void> {
  const { values, switches, rest } = options(args, {
    string: [...answeringOptions, "system", "file", "load", "save"],
    boolean: ["json", "stats"],
  });
  if (rest.length > 0) throw new Usage(`chat takes no "${rest[0]}": messages are lines of standard input`);
  if (values.load !== undefined && (values.system ?? values.file) !== undefined) {
    throw new Usage("chat takes --load, or --system or --file, found both");
  }
  const [loading, cache, sampling] = [loadOptions(values), cacheOptions(values), samplingOptions(values)];
  const system = values.file === undefined ? values.system : `${values.system ?? ""}${await textOf(values.file)}`;
  const isTerminal = process.stdin.isTTY === true && process.stdout.isTTY === true;
  const onProgress = showProgress(process.stderr.isTTY === true);
  let answering = new AbortController();
  try {
    using model = await load(values.model, { ...loading, onProgress });
    const { kv, capacity, kvDtype } = cache;
    using chat = values.load === undefined
      ? model.chat({ system, kv, kvDtype, ...(capacity !== undefined && { capacity }) })
      : await model.restoreChat(values.load, { kv, onProgress });
    await chat.prefill({ onProgress, signal: answering.signal });
    const lines = createInterface({
      input: process.stdin,
      output: isTerminal ? process.stdout : undefined,
      terminal: isTerminal,
      prompt: "> ",
    });
    const interrupt = () => answering.signal.aborted ? lines.close() : answering.abort();
    lines.on("SIGINT", interrupt);
    process.on("SIGINT", interrupt);
    const stats: GenerateStats[] = [];
    try {
      answering.abort(); // nothing is under way
      if (isTerminal) lines.prompt();
      for await (const line of lines) {
        if (line.trim() !== "") {
          answering = new AbortController();
          const asked = { ...sampling, ...(switches.stats && { stats: "ops" as const }), signal: answering.signal, onProgress };
          stats.push(await answer(chat, line, asked, switches.json));
          if (!switches.json) showStats(stats.at(-1)!, switches.stats);
          answering.abort();
        }
        if (isTerminal) lines.prompt();
      }
    } finally {
      process.off("SIGINT", interrupt);
      lines.close();
    }
    if (values.save !== undefined) await chat.save(values.save);
    if (switches.json) process.stdout.write(`${JSON.stringify({ messages: chat.messages, stats })}\n`);
  } finally {
    onProgress.end();
  }
}

async function answer(chat: Chat, said: string, sending: Parameters<Chat["send"]>[1], isSilent: boolean): Promise<GenerateStats> {
  const generation = chat.send(said, sending);
  for await (const piece of generation) if (!isSilent) process.stdout.write(piece);
  if (!isSilent) process.stdout.write("\n");
  return (await generation).stats;
}
