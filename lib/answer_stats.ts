/** What an answer took: tokens, rows, bytes and time. */
import type { OpTimes } from "./device.ts";
import type { FinishReason, GenerateResult, GenerateStats, TokenLogprob } from "./generation.ts";
import { attendedRows, bytesPerRow } from "./metrics/attended.ts";
import type { Sampling } from "./sampling.ts";
import type { Attended, Session } from "./session.ts";

/** A prompt that waits for a slot. */
export interface Job {
  readonly index: number;
  /** The whole text to go on from. */
  readonly tokens: readonly number[];
  readonly sampling: Sampling;
}

/** What is known of an answer while it is made. */
export interface Answered {
  readonly job: Job;
  readonly slot: number;
  readonly tokens: number[];
  readonly logprobs: TokenLogprob[];
  /** When its prompt began to be read, and when the first token was known (0: not yet); milliseconds. */
  readonly began: number;
  first: number;
  /** Tokens of the prompt that had to be read. */
  read: number;
  /** Counters when the prompt had been read. */
  before: Attended | undefined;
  timesBefore: OpTimes | undefined;
  text: string;
}

/** Ops with which policies choose rows. */
const selecting: readonly string[] = [
  "centroidScores",
  "topk",
  "fillBudget",
  "fillWhole",
  "pageScores",
  "latentScores",
  "trimIndex",
  "reconstruct",
  "gatherRows",
  "setTail",
  "queries",
  "evict",
];
const attending: readonly string[] = ["attend", "attendEstimates"];

export async function resultOf(session: Session, one: Answered, finishReason: FinishReason, stats?: "ops"): Promise<GenerateResult> {
  const { text, tokens, logprobs } = one;
  return { text, tokens, finishReason, stats: await statsOf(session, one, stats), ...(one.job.sampling.logprobs ? { logprobs } : {}) };
}

async function statsOf(session: Session, one: Answered, stats: "ops" | undefined): Promise<GenerateStats> {
  const { slot, job, tokens, began, first, read, before, timesBefore } = one;
  const ended = performance.now();
  const after = await session.attended(slot);
  const rows = attendedRows(session, before ?? after, after);
  const seconds = first ? (ended - first) / 1000 : 0;
  const times = await session.times();
  const ops = since(timesBefore ?? times, times);
  const all = secondsOf(ops);
  return {
    promptTokens: job.tokens.length,
    readTokens: read,
    generatedTokens: tokens.length,
    secondsToFirstToken: first ? (first - began) / 1000 : 0,
    tokensPerSecond: seconds > 0 ? (tokens.length - 1) / seconds : 0,
    budget: session.budget,
    attendedRows: rows,
    bytesPerStep: Math.round(rows.total * bytesPerRow(session) + session.selectBytes(slot)),
    fullBytesPerStep: session.length(slot) * bytesPerRow(session),
    heldRows: mean(session.rows(slot)),
    clusters: session.clusters(slot),
    ...(all > 0 && { share: { select: secondsOf(ops, selecting) / all, attend: secondsOf(ops, attending) / all } }),
    ...(stats === "ops" && { ops }),
  };
}

/** What was added between two readings. */
function since(before: OpTimes, after: OpTimes): OpTimes {
  const added = Object.entries(after).map(([op, { runs, seconds }]) =>
    [op, { runs: runs - (before[op]?.runs ?? 0), seconds: seconds - (before[op]?.seconds ?? 0) }] as const
  );
  return Object.fromEntries(added.filter(([, { runs }]) => runs > 0));
}

function secondsOf(times: OpTimes, ops: readonly string[] = Object.keys(times)): number {
  return ops.reduce((sum, op) => sum + (times[op]?.seconds ?? 0), 0);
}

function mean(numbers: readonly number[]): number {
  return numbers.reduce((sum, number) => sum + number, 0) / numbers.length;
}
