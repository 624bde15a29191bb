/** Running a session and writing down all that its numbers are: for comparing two runs bit by bit. */
import type { LoadedModel } from "../../lib/model.ts";
import type { Session, SessionOptions } from "../../lib/session.ts";

export interface Run {
  tokens: number[];
  logprobs: number[];
  logits: Float32Array;
}

/** Decodes `count` tokens of one slot, end tokens included, and reads the last logits. */
export async function decode(session: Session, count: number, slot = 0): Promise<Run> {
  const run: Run = { tokens: [], logprobs: [], logits: new Float32Array(0) };
  for await (const { token, logprob } of session.decode({ maxTokens: count, stop: [], slots: [slot] })) {
    run.tokens.push(token);
    run.logprobs.push(logprob);
  }
  run.logits = await session.logits({ slot });
  return run;
}

/** A fresh session that reads a prompt and decodes. */
export async function fresh(model: LoadedModel, options: SessionOptions, prompt: readonly number[], count: number): Promise<Run> {
  using session = model.session(options);
  await session.prefill(prompt);
  return await decode(session, count);
}

/** Largest difference of two runs' logits. */
export function largestDifference(a: Float32Array, b: Float32Array): number {
  return a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i])), 0);
}
