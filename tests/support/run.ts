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

const normalizers = new WeakMap<Float32Array, number>();

/** Log-probability of a token. */
export function logprobOf(logits: Float32Array, token: number): number {
  let normalizer = normalizers.get(logits);
  if (normalizer === undefined) {
    const top = logits.reduce((a, b) => Math.max(a, b));
    normalizer = top + Math.log(logits.reduce((total, value) => total + Math.exp(value - top), 0));
    normalizers.set(logits, normalizer);
  }
  return logits[token] - normalizer;
}

/** KL(P || Q) of two sets of logits, in nats. */
export function divergence(p: Float32Array, q: Float32Array): number {
  return p.reduce((sum, _, token) => {
    const [a, b] = [logprobOf(p, token), logprobOf(q, token)];
    return sum + Math.exp(a) * (a - b);
  }, 0);
}
