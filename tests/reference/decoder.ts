/**
 * A Llama decoder over a whole sequence, in f64, from plain weights under their Hugging Face names: tokens in, logits out. No cache, no
 * chunks: every token attends to all before it.
 */
import { add, addScaled, dot, product, rmsNorm, rotate, silu, softmax } from "./numbers.ts";
import { type Matrix, range } from "./plain.ts";

type Vector = Float64Array;

export interface LlamaConfig {
  readonly num_hidden_layers: number;
  readonly num_attention_heads: number;
  readonly num_key_value_heads: number;
  readonly head_dim: number;
  readonly rms_norm_eps: number;
  readonly rope_theta: number;
}

export interface Decoded {
  /** Logits after each token. */
  readonly logits: Vector[];
  /** keys[layer][kvHead][token]: after rotation. */
  readonly keys: Vector[][][];
  /** queries[layer][head][token]: after rotation. */
  readonly queries: Vector[][][];
}

/** Runs the model over `tokens`; `logitsFrom`: first token whose logits are wanted. */
export function decode(config: LlamaConfig, weight: (name: string) => Matrix, tokens: readonly number[], logitsFrom = 0): Decoded {
  const { num_attention_heads: heads, num_key_value_heads: kvHeads, head_dim: headDim, rms_norm_eps: eps } = config;
  const frequencies = range(headDim / 2).map((i) => Math.fround(config.rope_theta ** (-2 * i / headDim)));
  const turned = (head: Vector, position: number) => {
    const angles = frequencies.map((frequency) => position * frequency);
    return rotate(head, Float64Array.from(angles, Math.cos), Float64Array.from(angles, Math.sin));
  };
  const parts = (x: Vector) => range(x.length / headDim).map((head) => x.subarray(head * headDim, (head + 1) * headDim));

  const embedding = weight("model.embed_tokens.weight");
  let x: Vector[] = tokens.map((token) => embedding.data.slice(token * embedding.cols, (token + 1) * embedding.cols));
  const [allKeys, allQueries]: Vector[][][][] = [[], []];

  for (const layer of range(config.num_hidden_layers)) {
    const w = (name: string) => weight(`model.layers.${layer}.${name}.weight`);
    const normed = x.map((row) => rmsNorm(row, w("input_layernorm").data, eps));
    const q = normed.map((h, position) => parts(product(w("self_attn.q_proj"), h)).map((head) => turned(head, position)));
    const k = normed.map((h, position) => parts(product(w("self_attn.k_proj"), h)).map((head) => turned(head, position)));
    const v = normed.map((h) => parts(product(w("self_attn.v_proj"), h)));
    allQueries.push(range(heads).map((head) => q.map((row) => row[head])));
    allKeys.push(range(kvHeads).map((head) => k.map((row) => row[head])));

    x = x.map((row, position) => {
      const attended = new Float64Array(heads * headDim);
      for (const head of range(heads)) {
        const kvHead = Math.floor(head / (heads / kvHeads));
        const weights = softmax(Float64Array.from(range(position + 1), (j) => dot(q[position][head], k[j][kvHead]) / Math.sqrt(headDim)));
        weights.forEach((share, j) => addScaled(attended.subarray(head * headDim, (head + 1) * headDim), share, v[j][kvHead]));
      }
      const middle = add(row, product(w("self_attn.o_proj"), attended));
      const h = rmsNorm(middle, w("post_attention_layernorm").data, eps);
      const up = product(w("mlp.up_proj"), h);
      const gated = product(w("mlp.gate_proj"), h).map((value, i) => silu(value) * up[i]);
      return add(middle, product(w("mlp.down_proj"), gated));
    });
  }

  const norm = weight("model.norm.weight").data;
  const logits = x.slice(logitsFrom).map((row) => product(embedding, rmsNorm(row, norm, eps)));
  return { logits, keys: allKeys, queries: allQueries };
}
