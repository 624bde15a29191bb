/** The layer loop, the only copy: a prefill chunk and a decode step, for every model family, policy and device. */
import { type Kernels, type LayerHandle, type ModelHandle, STEP } from "./kernels.ts";
import type { Rows, StepState } from "./kv/store.ts";
import { type Attention, everyRow, type Layer } from "./policies/policy.ts";
import type { Tensor } from "./tensor.ts";

/** A model's weights on a device. */
export interface Weights {
  readonly ends: ModelHandle;
  readonly layers: readonly LayerHandle[];
  /** f32[ropeDim / 2]: inverse frequencies of the rotary embedding, scaling included. */
  readonly frequencies: Tensor;
  /** Multiplies cosines and sines (YaRN; else 1). */
  readonly rotationFactor: number;
}

/** Room for the activations of `count` rows at a time. */
export interface Activations {
  /** f32[count, hidden]: residual stream. */
  readonly x: Tensor;
  /** f32[count, heads, headDim]. */
  readonly q: Tensor;
  readonly attended: Tensor;
  /** f32[count, heads]: log-sum-exp of attention. */
  readonly lse: Tensor;
  /** f32[count, 2, ropeDim / 2]. */
  readonly rotations: Tensor;
  readonly work: Tensor;
}

/** A layer as a session runs it: its rows, and what the policy does with them. */
export interface SessionLayer {
  readonly rows: Rows;
  readonly weights: LayerHandle;
  readonly policy: Layer | typeof everyRow;
  /** Rows at the start that are always read beside the tail; 0 where the tail is everything. */
  readonly sink: number;
}

/** Where a chunk stands in its prompt. */
export interface Chunk {
  readonly slot: number;
  readonly count: number;
  /** Tokens of the prompt before it and after it, and rows of the slot before the prompt. */
  readonly from: number;
  readonly rest: number;
  readonly begin: number;
  /** Tokens of the whole prompt. */
  readonly prompt: number;
  /** i32[count]. */
  readonly position: Tensor;
}

/** Enqueues one layer over a chunk of one slot. */
export function chunkLayer(k: Kernels, layer: SessionLayer, a: Activations, chunk: Chunk): void {
  const { rows, weights, policy } = layer;
  const { slot, count, position } = chunk;
  const observe = policy === everyRow ? undefined : policy.observe;
  k.attnIn(a.q, rows.handle, a.x, weights, a.rotations, position, a.work, slot, count);
  k.attendChunk(a.attended, observe ? a.lse : null, a.q, rows.handle, weights, slot, count);
  observe?.(k, attentionOf(a, weights, chunk));
  k.attnOut(a.x, a.attended, weights, null, a.work, count);
}

function attentionOf(a: Activations, layer: LayerHandle, chunk: Omit<Chunk, "position">): Attention {
  const { slot, count, from, rest, begin, prompt } = chunk;
  const { q, attended, lse, rotations } = a;
  return { slot, count, from, rest, begin, prompt, q, attended, lse, rotations, layer };
}

/** Enqueues one decode step of every active slot, from the token to feed to the logits of the next; `position` is then the next one's. */
export function step(
  k: Kernels,
  weights: Weights,
  layers: readonly SessionLayer[],
  state: StepState,
  a: Activations,
  logits: Tensor,
  slots: number,
): void {
  const { active, position, token } = state;
  k.rotations(a.rotations, position, weights.frequencies, weights.rotationFactor, slots);
  k.embed(a.x, weights.ends, token, active, slots);
  layers.forEach((layer, l) => {
    const next = layers[l + 1];
    if (next && next.policy !== everyRow) {
      next.policy.foresee?.(k, (to) => k.queries(to, a.x, next.weights, active, a.rotations, a.work, slots));
    }
    k.attnIn(a.q, layer.rows.handle, a.x, layer.weights, a.rotations, position, a.work, STEP, slots);
    attendStep(k, layer, a, slots);
    k.attnOut(a.x, a.attended, layer.weights, active, a.work, slots);
  });
  k.head(logits, a.x, weights.ends, active, a.work, 0, slots);
  k.advance(position, active);
}

/** The policy's choice, attention over it, and what the policy wants to know of it. */
function attendStep(k: Kernels, { rows, weights, policy, sink }: SessionLayer, a: Activations, slots: number): void {
  if (policy === everyRow) return k.attend(a.attended, null, a.q, rows.handle, weights, null, a.work, sink);
  const { index = null, estimates } = policy.select(k, a.q, { rotations: a.rotations });
  k.attend(a.attended, estimates || policy.attended ? a.lse : null, a.q, rows.handle, weights, index, a.work, sink);
  if (estimates) {
    const { centroids, means, bias } = estimates;
    k.attendEstimates(a.attended, a.lse, a.q, rows.handle, weights, centroids, means, bias, a.work);
  }
  policy.attended?.(k, attentionOf(a, weights, { slot: STEP, count: slots, from: 0, rest: 0, begin: 0, prompt: 0 }));
}
