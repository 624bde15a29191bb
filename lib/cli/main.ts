#!/usr/bin/env bun
/** The command line: `recallkv COMMAND …`. Exit codes: 0, 1 (failed), 2 (wrong usage). */
import process from "node:process";
import { parseArgs } from "@std/cli/parse-args";
import { answeringHelp } from "./answering.ts";
import { runCalibrate } from "./calibrate_command.ts";
import { runChat } from "./chat_command.ts";
import { runDemo } from "./demo_command.ts";
import { runGenerate } from "./generate_command.ts";
import { runInspect } from "./inspect_command.ts";
import { runPull } from "./pull_command.ts";
import { nearest } from "../options.ts";
import { Usage } from "./usage.ts";
import packageJson from "../../package.json" with { type: "json" };

const help = `recallkv: long contexts over a KV cache that is read only where it matters

Usage
  recallkv generate PROMPT [options]   continue a text
  recallkv chat [options]              talk, a line at a time; what was read is not read again
  recallkv inspect FILE|DIR            what a model is and needs, from its headers alone (--json)
  recallkv pull OWNER/NAME [FILE]      download a model; the only command that touches the network
  recallkv calibrate MODEL TEXT        find the directions that infiniGen and sals need
  recallkv demo [options]              questions about long documents, through eight caches
  recallkv --help | --version

Options of generate and chat
${answeringHelp}
  --json              print one document and nothing else
  --stats             say on standard error what each answer took, and the time of each op
Of generate
  --file PATH         read the prompt from a file ("-" for standard input)
Of chat
  --system TEXT       what the conversation begins with
  --file PATH         the same, from a file
  --load FILE         go on with a saved conversation (with the --kv it had)
  --save FILE         save the conversation at its end

Options of pull
  --to FOLDER         where to write                                           (., or NAME)
  --revision NAME     a branch, tag or commit                                  (main)
  --hub URL           another hub                                              (https://huggingface.co)

Options of calibrate
  --tokens N          most tokens of TEXT to read                              (4096)
  --out FILE          where to write                                           (MODEL.calibration.safetensors)

Options of demo
  --seed N            draws the facts and their places                         (1)
  --documents N       how many documents to read                               (2)
  --json              print one document and nothing else
`;

const commands: Record<string, (args: readonly string[]) => Promise<void>> = {
  generate: runGenerate,
  chat: runChat,
  pull: runPull,
  inspect: runInspect,
  calibrate: runCalibrate,
  demo: runDemo,
};

async function main(args: readonly string[]): Promise<number> {
  const [command, ...rest] = args;
  try {
    if (command === undefined || rest.includes("--help") || command === "--help" || command === "-h" || command === "help") {
      process.stdout.write(help);
      return command === undefined ? 2 : 0;
    }
    if (command === "--version" || parseArgs([command], { boolean: ["version"] }).version) {
      process.stdout.write(`${packageJson.version}\n`);
      return 0;
    }
    const run = commands[command];
    if (!run) {
      const names = Object.keys(commands);
      throw new Usage(`unknown command "${command}", want ${nearest(command, names) ?? `one of ${names.join(", ")}`}`);
    }
    await run(rest);
    return 0;
  } catch (error) {
    process.stderr.write(`recallkv: ${error instanceof Error ? error.message : String(error)}\n`);
    if (!(error instanceof Usage)) return 1;
    process.stderr.write("Try: recallkv --help\n");
    return 2;
  }
}

// Whoever read our output has had enough (`recallkv … | head`): that is an end, and no failure.
process.stdout.on("error", (error: Error & { code?: string }) => {
  if (error.code !== "EPIPE") throw error;
  process.exit(0);
});

process.exitCode = await main(process.argv.slice(2));
