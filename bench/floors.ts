/** The least time that a prompt or a step can take on this machine: its products at the arithmetic limit, its bytes at the bandwidth. */
import type { LoadedModel } from "../lib/model.ts";
import { rowBytes } from "../lib/tensor.ts";
import type { KvDType } from "../lib/types.ts";
import { weightBytes } from "../lib/weights.ts";
import type { Limits } from "./limits.ts";

/** Weights that a row meets in the layers: all matrices but embedding and output. */
function layerWeights(
  { shape: { layers, hidden, heads, kvHeads, headDim, intermediate } }: LoadedModel,
): number {
  return layers * hidden *
    ((2 * heads + 2 * kvHeads) * headDim + 3 * intermediate);
}

/** Milliseconds: products with quantised weights as bytes, others and attention as BF16 (f32 where the machine has neither). */
export function prefillFloor(
  model: LoadedModel,
  limits: Limits,
  tokens: number,
): number {
  const { layers, heads, headDim } = model.shape;
  const bf16 = limits.bf16 ?? limits.f32 ?? NaN;
  const isQuantised = model.checkpoint.weights.layers[0].q.type.startsWith("q");
  const products = 2 * tokens * layerWeights(model) /
    (isQuantised ? limits.bytes ?? bf16 : bf16);
  const attention = 4 * layers * heads * headDim * tokens * (tokens + 1) / 2 /
    bf16;
  return (products + attention) / 1e6;
}

/** Bytes of keys and values of one row in one layer. */
export function kvRowBytes(
  { shape: { kvHeads, headDim } }: LoadedModel,
  dtype: KvDType,
): number {
  return 2 * kvHeads * rowBytes(dtype, headDim);
}

/** Bytes of all that a step reads of the weights. */
export function stepWeights(model: LoadedModel): number {
  const { embed, output } = model.checkpoint.weights;
  return weightBytes(model.checkpoint) - (output ? embed.bytes : 0);
}

/** Milliseconds of a step that reads `bytes` beside the weights, at so many GB/s. */
export function stepFloor(model: LoadedModel, bandwidth: number, bytes: number): number {
  return (stepWeights(model) + bytes) / bandwidth / 1e6;
}
