/** The layer loop, the only copy: a prefill chunk and a decode step, for every model family, policy and device. */
import { type Kernels, type LayerHandle, type ModelHandle, STEP } from "./kernels.ts";
import type { Rows, StepState } from "./kv/store.ts";
import { everyRow, type Layer } from "./policies/policy.ts";
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

/** Enqueues one layer over a chunk of one slot. */
export function chunkLayer(k: Kernels, layer: SessionLayer, a: Activations, position: Tensor, slot: number, count: number): void {
  const { rows, weights } = layer;
  k.attnIn(a.q, rows.handle, a.x, weights, a.rotations, position, a.work, slot, count);
  k.attendChunk(a.attended, null, a.q, rows.handle, weights, slot, count);
  k.attnOut(a.x, a.attended, weights, null, a.work, count);
}

/** Enqueues one decode step of every active slot: feeds `token`, leaves the next one there, and moves on. */
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
  for (const { rows, weights: layer, policy, sink } of layers) {
    k.attnIn(a.q, rows.handle, a.x, layer, a.rotations, position, a.work, STEP, slots);
    const { index = null } = policy === everyRow ? {} : policy.select(k, a.q);
    k.attend(a.attended, null, a.q, rows.handle, layer, index, a.work, sink);
    k.attnOut(a.x, a.attended, layer, active, a.work, slots);
  }
  k.head(logits, a.x, weights.ends, active, a.work, 0, slots);
  k.greedy(token, state.logprob, logits, active, 0, slots);
  k.advance(position, active);
}
