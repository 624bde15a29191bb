/** What an answer took, as a line under it. */
import process from "node:process";
import { count } from "../format.ts";
import type { GenerateStats } from "../generation.ts";

/** Writes it on stderr: on a terminal, or where `--stats` asked for it, with the time of each op then. */
export function showStats(stats: GenerateStats, isWanted: boolean): void {
  if (!isWanted && process.stderr.isTTY !== true) return;
  process.stderr.write(`${statsLine(stats)}\n`);
  if (isWanted && stats.ops) process.stderr.write(opsTable(stats.ops));
}

export function statsLine(stats: GenerateStats): string {
  const { readTokens, promptTokens, secondsToFirstToken, generatedTokens, tokensPerSecond, attendedRows, share, clusters } = stats;
  const { sink, index, tail, total } = attendedRows;
  const parts = [
    `${count(readTokens)} of ${count(promptTokens)} tokens read in ${secondsToFirstToken.toFixed(2)} s`,
    `${count(generatedTokens)} written, ${tokensPerSecond.toFixed(1)}/s`,
    `${rows(total)} rows a step (${rows(sink)} sink, ${rows(index)} index, ${rows(tail)} tail)`,
    `${megabytes(stats.bytesPerStep)} of ${megabytes(stats.fullBytesPerStep)} MB`,
    ...(clusters > 0 ? [`${rows(clusters)} clusters`] : []),
    ...(share ? [`select ${percent(share.select)}, attend ${percent(share.attend)} of the time`] : []),
  ];
  return `[${parts.join("; ")}]`;
}

function opsTable(ops: NonNullable<GenerateStats["ops"]>): string {
  const lines = Object.entries(ops).sort(([, a], [, b]) => b.seconds - a.seconds);
  return lines.map(([op, { runs, seconds }]) =>
    `  ${op.padEnd(16)}${(1000 * seconds).toFixed(1).padStart(10)} ms${count(runs).padStart(10)} runs\n`
  )
    .join("");
}

const rows = (number: number) => count(Math.round(number));
const percent = (part: number) => `${Math.round(100 * part)} %`;
const megabytes = (bytes: number) => (bytes / 1e6).toFixed(bytes < 1e8 ? 1 : 0);
