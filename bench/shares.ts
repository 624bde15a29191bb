/** What clustering takes of a prompt and choosing of a step, by the device's own clock. */
import type { OpTimes } from "../lib/device.ts";
import type { Session } from "../lib/session.ts";

export const clustering = ["seedCentroids", "assign", "group", "centroidMeans", "radius", "permuteRows"];
export const choosing = ["centroidScores", "topk", "fillBudget", "fillWhole"];

/** What ran between two readings of the clock, in seconds: some ops, and all. */
export function secondsOf(ops: readonly string[], before: OpTimes, after: OpTimes): { part: number; all: number } {
  const sum = (names: readonly string[]) => names.reduce((sum, op) => sum + (after[op]?.seconds ?? 0) - (before[op]?.seconds ?? 0), 0);
  return { part: sum(ops), all: sum(Object.keys(after).filter((op) => op !== "replay")) };
}

/** The same of what `run` does with a session. */
export async function clocked(
  session: Session,
  ops: readonly string[],
  run: () => Promise<unknown>,
): Promise<{ part: number; all: number }> {
  session.clock(true);
  const before = await session.times();
  await run();
  const after = await session.times();
  session.clock(false);
  return secondsOf(ops, before, after);
}
