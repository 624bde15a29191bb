import type { Family } from "./family.ts";

/** Mistral 7B and its kin: Llama, with a sliding window in every layer where the config has one. */
export const mistral: Family = {
  name: "mistral",
  extras: [],
  only: { hidden_act: ["silu"], attention_bias: [false], mlp_bias: [false] },
  known: ["sliding_window", "layer_types"],
  slides: (config) => () => typeof config.sliding_window === "number",
  architectures: [], // GGUF files call it llama
  interleavedInGguf: true,
};
