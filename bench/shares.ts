/** What clustering takes of a prompt and choosing of a step, by the device's own clock. */
import type { Session } from "../lib/session.ts";

export const clustering = ["seedCentroids", "assign", "group", "centroidMeans", "radius", "permuteRows"];
export const choosing = ["centroidScores", "topk", "fillBudget", "fillWhole"];

/** Seconds that some ops took while `run` did something with a session, each of them and together, and that all ops took. */
export async function clocked(
  session: Session,
  ops: readonly string[],
  run: () => Promise<unknown>,
): Promise<{ each: Record<string, number>; part: number; all: number }> {
  session.clock(true);
  const before = await session.times();
  await run();
  const after = await session.times();
  session.clock(false);
  const seconds = (op: string) => (after[op]?.seconds ?? 0) - (before[op]?.seconds ?? 0);
  const sum = (names: readonly string[]) => names.reduce((total, op) => total + seconds(op), 0);
  const each = Object.fromEntries(ops.map((op) => [op, seconds(op)]).filter(([, taken]) => taken as number > 0));
  return { each, part: sum(ops), all: sum(Object.keys(after).filter((op) => op !== "replay")) };
}
