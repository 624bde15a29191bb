/** Holds the demo's table against what it must show: check_demo.ts FILE. */
import { readFileSync } from "node:fs";
import process from "node:process";
import type { DemoRow } from "../lib/cli/demo.ts";

const { n, rows } = JSON.parse(readFileSync(process.argv[2], "utf8")) as { n: number; rows: DemoRow[] };
const total = ({ attended: { sink, index, tail } }: DemoRow) => sink + index + tail;
const [full, clusters, window, paper, paperWindow] = rows;
const wanted: [what: string, holds: boolean][] = [
  ["120 questions were asked", n === 120],
  ["the full cache answers 70 % or more", full.policy === "full" && full.right >= 0.7 * n],
  ["clusterKV (16) is within 10 points of it", clusters.tokensPerCluster === 16 && clusters.right >= full.right - 0.1 * n],
  ["the window answers under a third of that", window.policy === "slidingWindow" && window.right < full.right / 3],
  ["both read as many rows", Math.abs(total(clusters) - total(window)) < 1],
  ["so do the paper's row and its window", Math.abs(total(paper) - total(paperWindow)) < 1],
];
for (const [what, holds] of wanted) console.log(`${holds ? "holds" : "FAILS"}: ${what}`);
process.exitCode = wanted.every(([, holds]) => holds) ? 0 : 1;
