#!/usr/bin/env bun
/** The command line: `recallkv COMMAND …`. Exit codes: 0, 1 (failed), 2 (wrong usage). */
import process from "node:process";
import { parseArgs } from "@std/cli/parse-args";
import { runCalibrate } from "./calibrate_command.ts";
import { runDemo } from "./demo_command.ts";
import { runGenerate } from "./generate_command.ts";
import { Usage } from "./usage.ts";
import packageJson from "../../package.json" with { type: "json" };

const help = `recallkv: long contexts over a KV cache that is read only where it matters

Usage
  recallkv generate PROMPT [options]   continue a text
  recallkv calibrate MODEL TEXT        find the directions that infiniGen and sals need
  recallkv demo [options]              questions about long documents, through eight caches
  recallkv --help | --version

Options of generate
  --model PATH        a directory in Hugging Face's layout, or a .gguf file   (the model that ships with recallkv)
  --device KIND       auto, cpu or cuda                                        (auto)
  --threads N         width of the CPU pool                                    (all cores)
  --kv POLICY         full, clusterKV, quest, slidingWindow, snapKV, h2o, …    (full)
  --budget N          rows read per head and step: a number or a fraction      (1024, or the policy's own)
  --kv-dtype TYPE     dtype of the KV rows: f32, f16, bf16 or q8               (f16)
  --max-tokens N      most tokens to generate                                  (256)
  --file PATH         read the prompt from a file ("-" for standard input)
  --json              print one document { text, tokens, finishReason, stats } and nothing else

Options of calibrate
  --tokens N          most tokens of TEXT to read                              (4096)
  --out FILE          where to write                                           (MODEL.calibration.safetensors)

Options of demo
  --seed N            draws the facts and their places                         (1)
  --documents N       how many documents to read                               (2)
  --json FILE         write the table to FILE
`;

const commands: Record<string, (args: readonly string[]) => Promise<void>> = {
  generate: runGenerate,
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
    if (!run) throw new Usage(`unknown command "${command}", want one of ${Object.keys(commands).join(", ")}`);
    await run(rest);
    return 0;
  } catch (error) {
    process.stderr.write(`recallkv: ${error instanceof Error ? error.message : String(error)}\n`);
    if (!(error instanceof Usage)) return 1;
    process.stderr.write("Try: recallkv --help\n");
    return 2;
  }
}

process.exitCode = await main(process.argv.slice(2));
