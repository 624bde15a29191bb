import type { Family } from "./family.ts";

/** Llama 1, 2, 3.x, and all that declare themselves so (TinyLlama, SmolLM2; in GGUF Mistral too). */
export const llama: Family = {
  name: "llama",
  extras: [],
  only: {
    hidden_act: ["silu"],
    attention_bias: [false],
    mlp_bias: [false],
    pretraining_tp: [1],
    attention_multiplier: [1],
    logits_scaling: [1],
  },
  known: [],
  architectures: ["llama"],
  interleavedInGguf: true,
};
