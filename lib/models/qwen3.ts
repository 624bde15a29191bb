import type { Family } from "./family.ts";

/** Qwen3: a norm on each head's q and k, no biases, and a head width apart from hidden / heads. */
export const qwen3: Family = {
  name: "qwen3",
  extras: ["qNorm", "kNorm"],
  only: { hidden_act: ["silu"], use_sliding_window: [true, false], attention_bias: [false] },
  known: ["sliding_window", "max_window_layers", "layer_types"],
  slides: (config) => (layer) => config.use_sliding_window === true && layer >= Number(config.max_window_layers ?? 28),
  architectures: ["qwen3"],
  interleavedInGguf: false,
};
