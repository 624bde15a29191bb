import type { Family } from "./family.ts";

/** Qwen2 and Qwen2.5: biases at q, k and v. With `use_sliding_window` the layers from `max_window_layers` on see a window. */
export const qwen2: Family = {
  name: "qwen2",
  extras: ["qBias", "kBias", "vBias"],
  only: { hidden_act: ["silu"], use_sliding_window: [true, false], use_mrope: [false] },
  known: ["sliding_window", "max_window_layers", "layer_types"],
  slides: (config) => (layer) => config.use_sliding_window === true && layer >= Number(config.max_window_layers ?? 28),
  architectures: ["qwen2"],
  interleavedInGguf: false,
};
