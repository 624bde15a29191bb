/** A model family is data: what it has beside the common parts, and which config fields it stands for. */
import type { LayerWeights } from "./model.ts";

/** Vectors that some families have beside the common weights of a layer. */
export const extras = ["qBias", "kBias", "vBias", "oBias", "qNorm", "kNorm"] as const;
export type Extra = (typeof extras)[number];

export interface Family {
  /** model_type of config.json. */
  readonly name: string;
  readonly extras: readonly Extra[];
  /** Config fields that change the result, with the only values supported. A field that is absent or null is fine. */
  readonly only: Readonly<Record<string, readonly unknown[]>>;
  /** Config fields that the family honours beside the common ones, or that change nothing. Any other field is refused by name. */
  readonly known: readonly string[];
  /** Layers that see a sliding window, where a config does not name them in layer_types. */
  readonly slides?: (config: Readonly<Record<string, unknown>>) => (layer: number) => boolean;
  /** The window where a config has no field sliding_window, as transformers fills it in. */
  readonly window?: number;
  /** Values of general.architecture in GGUF files. */
  readonly architectures: readonly string[];
  /** In GGUF the two channels of a RoPE pair lie beside each other: rows of q and k are put back into halves. */
  readonly interleavedInGguf: boolean;
}

/** What a format calls a model's tensors. */
export interface TensorNames {
  readonly embed: string;
  readonly outputNorm: string;
  readonly output: string;
  readonly layer: (layer: number, weight: keyof LayerWeights) => string;
  /** Tensors that may be there and mean nothing. */
  readonly isIdle: (name: string) => boolean;
}
