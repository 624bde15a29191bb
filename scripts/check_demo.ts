/** Holds the demo's table against what it must show: check_demo.ts FILE. */
import { readFileSync } from "node:fs";
import process from "node:process";
import type { DemoRow, DemoTable } from "../lib/cli/demo.ts";

const { n, context, rows } = JSON.parse(readFileSync(process.argv[2], "utf8")) as DemoTable;
const total = ({ attended: { sink, index, tail } }: DemoRow) => sink + index + tail;
const [full, wide, wideLarge, wideWindow, narrow, narrowLarge, narrowBound, narrowWindow] = rows;
const wanted: [what: string, holds: boolean][] = [
  ["80 questions or more were asked", n >= 80],
  ["the full cache answers 95 % or more", full.policy === "full" && full.right >= 0.95 * n],
  ["clusterKV at 1/16 answers 70 % or more", wide.budget === context / 16 && wide.right >= 0.7 * n],
  ["smaller clusters answer more than the paper's", wide.right > wideLarge.right && narrow.right > narrowLarge.right],
  ["the bound answers more at 1/32", narrowBound.bound === 0.3 && narrowBound.right > narrow.right],
  ["windows answer under a tenth", wideWindow.right < 0.1 * n && narrowWindow.right < 0.1 * n],
  [
    "a window reads as many rows as its pair",
    Math.abs(total(wide) - total(wideWindow)) < 2 && Math.abs(total(narrow) - total(narrowWindow)) < 2,
  ],
];
for (const [what, holds] of wanted) console.log(`${holds ? "holds" : "FAILS"}: ${what}`);
process.exitCode = wanted.every(([, holds]) => holds) ? 0 : 1;
