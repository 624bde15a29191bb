/** recallkv's side: reading prompts, filling rows, decoding at a depth. */
import type { Kernels } from "../lib/kernels.ts";
import type { LoadedModel } from "../lib/model.ts";
import { full } from "../lib/policies/full.ts";
import type { Policy } from "../lib/policies/policy.ts";
import type { Session } from "../lib/session.ts";
import type { KvDType } from "../lib/types.ts";
import type { Tokens } from "./numbers.ts";
import { clocked, clustering } from "./shares.ts";

const CHUNK = 512;

/** Milliseconds of reading a prompt, and what share of them clustering took. */
export async function prefillTime(model: LoadedModel, tokens: number[], kv: Policy = full()): Promise<{ ms: number; clustering: number }> {
  using session = model.session({ kv, capacity: tokens.length + 1, chunk: CHUNK, onWarning: () => {} });
  const begin = performance.now();
  const { part, all } = await clocked(session, clustering, () => session.prefill(tokens));
  return { ms: performance.now() - begin, clustering: part / all };
}

/** Natural logarithms of the probabilities of the likeliest tokens after a text. */
export async function likeliest(
  model: LoadedModel,
  tokens: number[],
  count: number,
): Promise<{ token: number; logprob: number }[]> {
  using session = model.session({ capacity: tokens.length + 1 });
  await session.prefill(tokens);
  const logits = await session.logits();
  const sum = Math.log(
    logits.reduce((total, logit) => total + Math.exp(logit), 0),
  );
  const order = [...logits.keys()].sort((a, b) => logits[b] - logits[a]).slice(
    0,
    count,
  );
  return order.map((token) => ({ token, logprob: logits[token] - sum }));
}

/**
 * A session at a depth. Its rows are the keys and values that every layer makes of embedded random tokens, rotated to their positions:
 * attention and the rest of the layer are left out, as they would take as long as an honest prefill. Policies see the rows as they would
 * in a prompt, and build what they build. `building`: milliseconds that took.
 */
export async function filled(
  model: LoadedModel,
  kv: Policy,
  depth: number,
  more: number,
  tokens: Tokens,
  kvDtype: KvDType = "f16",
): Promise<{ session: Session; ms: number }> {
  const session = model.session({
    kv,
    capacity: Math.max(depth, 2) + more,
    chunk: CHUNK,
    kvDtype,
    onWarning: () => {},
  });
  const kernels = model.device.kernels as {
    -readonly [op in keyof Kernels]: Kernels[op];
  };
  const { attendChunk, attnOut } = kernels;
  kernels.attendChunk = kernels.attnOut = () => {};
  try {
    const begin = performance.now();
    await session.prefill(tokens.take(Math.max(depth, 1)));
    return { session, ms: performance.now() - begin };
  } finally {
    Object.assign(kernels, { attendChunk, attnOut });
  }
}

/** Milliseconds of each of `steps` steps. */
export async function decodeTimes(
  session: Session,
  steps: number,
): Promise<number[]> {
  const times: number[] = [];
  let before = performance.now();
  for await (const _ of session.decode({ maxTokens: steps + 1, stop: [] })) {
    const now = performance.now();
    times.push(now - before);
    before = now;
  }
  return times.slice(1); // the first token was there already, or brought the recording
}

/** Tokens per second of `slots` texts of one token each, decoded together. */
export async function slotsRate(
  model: LoadedModel,
  slots: number,
  steps: number,
): Promise<number> {
  using session = model.session({ slots, capacity: 2 * steps + 8 });
  for (let slot = 0; slot < slots; slot++) {
    await session.prefill([1000 + slot], { slot });
  }
  for await (const _ of session.decode({ maxTokens: 3, stop: [] })); // brings the recording
  const begin = performance.now();
  for await (const _ of session.decode({ maxTokens: steps, stop: [] }));
  return slots * steps / (performance.now() - begin) * 1e3;
}
