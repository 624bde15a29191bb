/** Progress bars on a terminal; nothing in a pipe. */
import process from "node:process";
import { progress as bar } from "@clack/prompts";
import type { OnProgress, Progress } from "../types.ts";

const said = {
  load: "loading the model",
  prefill: "reading the prompt",
  calibrate: "decomposing what it saw",
  restore: "reading the session",
  pull: "pulling",
} as const;

/** An `onProgress` that draws a bar per stage on stderr. `end` takes away what is still drawn. */
export function showProgress(isTerminal: boolean): OnProgress & { end(): void } {
  let stage: Progress["stage"] | undefined;
  let shown: ReturnType<typeof bar> | undefined;
  let drawn = 0;
  const end = () => {
    shown?.clear();
    shown = undefined;
    stage = undefined;
  };
  const show = ({ stage: now, done, total }: Progress) => {
    if (!isTerminal) return;
    if (now !== stage) {
      end();
      stage = now;
      drawn = 0;
      shown = bar({ max: 100, output: process.stderr, indicator: "timer" });
      shown.start(said[now]);
    }
    const percent = Math.floor((100 * done) / Math.max(1, total));
    if (percent > drawn) shown?.advance(percent - drawn);
    drawn = percent;
    if (done >= total) end();
  };
  return Object.assign(show, { end });
}
