/** Inverse frequencies of the rotary embedding, with the scalings that checkpoints ask for. */

export type RopeScaling =
  | { readonly type: "none" }
  | { readonly type: "linear"; readonly factor: number }
  /** `context`: the tokens that were read before the context was stretched. */
  | { readonly type: "llama3"; readonly factor: number; readonly low: number; readonly high: number; readonly context: number }
  | {
    readonly type: "yarn";
    readonly factor: number;
    readonly context: number;
    /** Turns within `context` above which a frequency stays, and below which it is divided by `factor`. */
    readonly fast: number;
    readonly slow: number;
    /** Whether the channels that those two turns fall on are rounded outwards. */
    readonly whole: boolean;
    readonly attentionFactor: number;
  }
  /** Each frequency has its own divisor (llama3 scaling in GGUF). */
  | { readonly type: "divisors"; readonly divisors: ArrayLike<number> };

export interface Frequencies {
  readonly inverseFrequencies: Float64Array;
  readonly attentionFactor: number;
}

/**
 * theta^(-2i/dim) for i in [0, dim/2), scaled.
 * Sources: RoFormer (arXiv 2104.09864); position interpolation (arXiv 2306.15595); Llama 3 (arXiv 2407.21783); YaRN (arXiv 2309.00071).
 */
export function frequenciesOf(theta: number, dim: number, scaling: RopeScaling): Frequencies {
  const plain = Float64Array.from({ length: dim / 2 }, (_, i) => theta ** ((-2 * i) / dim));
  const scaled = (of: (frequency: number, i: number) => number) => ({ inverseFrequencies: plain.map(of), attentionFactor: 1 });
  switch (scaling.type) {
    case "none":
      return scaled((frequency) => frequency);
    case "linear":
      return scaled((frequency) => frequency / scaling.factor);
    case "divisors":
      return scaled((frequency, i) => frequency / scaling.divisors[i]);
    case "llama3": {
      const { factor, low, high, context } = scaling;
      return scaled((frequency) => {
        const turns = (context * frequency) / (2 * Math.PI); // full turns within the original context
        const kept = clamp((turns - low) / (high - low));
        return (1 - kept) * (frequency / factor) + kept * frequency;
      });
    }
    case "yarn": {
      const { factor, context, fast, slow, whole, attentionFactor } = scaling;
      const channel = (turns: number) => (dim * Math.log(context / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
      const first = Math.max(whole ? Math.floor(channel(fast)) : channel(fast), 0);
      const last = Math.min(whole ? Math.ceil(channel(slow)) : channel(slow), dim - 1);
      const inverseFrequencies = plain.map((frequency, i) => {
        const divided = clamp((i - first) / Math.max(last - first, 0.001));
        return divided * (frequency / factor) + (1 - divided) * frequency;
      });
      return { inverseFrequencies, attentionFactor };
    }
  }
}

/** What YaRN multiplies cosines and sines by, so that attention over a longer context stays as sharp (its eq. 22). */
export function yarnAttentionFactor(factor: number, weight = 1): number {
  return factor <= 1 ? 1 : 0.1 * weight * Math.log(factor) + 1;
}

function clamp(value: number): number {
  return Math.min(1, Math.max(0, value));
}
