import type { Family } from "./family.ts";

/** Mistral 7B and its kin: Llama, with a sliding window in every layer unless the config says null. */
export const mistral: Family = {
  name: "mistral",
  extras: [],
  only: { hidden_act: ["silu"], attention_bias: [false], mlp_bias: [false] },
  known: ["sliding_window", "layer_types"],
  slides: (config) => () => config.sliding_window !== null,
  window: 4096,
  architectures: [], // GGUF files call it llama
  interleavedInGguf: true,
};
