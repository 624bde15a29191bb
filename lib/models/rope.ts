/** Inverse frequencies of the rotary embedding, with the scalings that checkpoints ask for. */
import { FormatError } from "../formats/checkpoint.ts";
import type { Config } from "./family.ts";

export interface RopeScaling {
  readonly inverseFrequencies: Float64Array;
  readonly attentionFactor: number;
}

/**
 * theta^(-2i/dim) for i in [0, dim/2), scaled as `rope_scaling` (transformers 4) or `rope_parameters` (5) says: none, linear, llama3.
 * Sources: RoFormer (arXiv 2104.09864); Llama 3 (arXiv 2407.21783).
 */
export function ropeOf(file: string, config: Config, dim: number): RopeScaling {
  const parameters = (config.rope_parameters ?? config.rope_scaling ?? {}) as Config;
  const theta = positive(file, "rope_theta", config.rope_theta ?? parameters.rope_theta ?? 10_000);
  const type = parameters.rope_type ?? parameters.type ?? "default";
  const plain = Float64Array.from({ length: dim / 2 }, (_, i) => theta ** ((-2 * i) / dim));
  const scale = (of: (frequency: number) => number): RopeScaling => ({ inverseFrequencies: plain.map(of), attentionFactor: 1 });
  if (type === "default") return scale((frequency) => frequency);
  const factor = positive(file, "rope_scaling.factor", parameters.factor);
  if (type === "linear") return scale((frequency) => frequency / factor);
  if (type === "llama3") {
    const low = positive(file, "rope_scaling.low_freq_factor", parameters.low_freq_factor);
    const high = positive(file, "rope_scaling.high_freq_factor", parameters.high_freq_factor);
    const context = positive(file, "rope_scaling.original_max_position_embeddings", parameters.original_max_position_embeddings);
    return scale((frequency) => {
      const turns = (context * frequency) / (2 * Math.PI); // full turns within the original context
      const smooth = Math.min(1, Math.max(0, (turns - low) / (high - low)));
      return (1 - smooth) * (frequency / factor) + smooth * frequency;
    });
  }
  throw new FormatError(file, `rope_scaling type is ${JSON.stringify(type)}, supported: default, linear, llama3`);
}

function positive(file: string, field: string, value: unknown): number {
  if (typeof value === "number" && Number.isFinite(value) && value > 0) return value;
  throw new FormatError(file, `${field} is ${JSON.stringify(value)}, want a positive number`);
}
