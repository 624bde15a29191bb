/**
 * ClusterKV (arXiv 2412.03213) as its text says it, for one KV head and the query heads of its group, over keys in the order of the
 * text: nothing is permuted, nothing is shared between heads, and a cluster is a list of positions. Three things are this project's:
 * evenly spaced initial centroids, segments, and one ranking per group (the sum over its heads of a softmax over the clusters).
 */
import { dot, softmax, sum } from "./numbers.ts";
import { range } from "./plain.ts";

type Vector = Float64Array;

export interface ClusterKVNumbers {
  /** First tokens: never clustered, always attended. */
  readonly sink: number;
  /** Tokens selected per step, sinks and unclustered tokens not counted. */
  readonly budget: number;
  readonly tokensPerCluster: number;
  readonly iterations: number;
  /** Prompt tokens that are clustered together; Infinity: all of them, as in the paper. */
  readonly segment: number;
  /** Generated tokens that are clustered together. */
  readonly every: number;
}

export const paper: ClusterKVNumbers = { sink: 16, budget: 1024, tokensPerCluster: 80, iterations: 20, segment: Infinity, every: 320 };

export interface Cluster {
  readonly centroid: Vector;
  /** Positions, ascending. */
  readonly members: readonly number[];
}

export interface Selected {
  readonly sinks: readonly number[];
  /** In order of rank, at most `budget`. */
  readonly recalled: readonly number[];
  readonly tail: readonly number[];
}

/** Clusters of `tokens` (positions): cosine assignment, raw means, until no label changes. `onMargin` is told how close each choice was. */
export function cluster(
  keys: readonly Vector[],
  tokens: readonly number[],
  clusters: number,
  iterations: number,
  onMargin: (margin: number) => void,
): Cluster[] {
  const centroids = range(clusters).map((c) => keys[tokens[Math.floor(((c + 0.5) * tokens.length) / clusters)]]);
  let labels = tokens.map(() => -1);
  for (let round = 0; round < iterations; round++) {
    const lengths = centroids.map((centroid) => Math.sqrt(dot(centroid, centroid)));
    const next = tokens.map((token) => {
      const key = keys[token];
      const length = Math.sqrt(dot(key, key));
      const cosines = centroids.map((centroid, c) => lengths[c] === 0 || length === 0 ? 0 : dot(key, centroid) / (lengths[c] * length));
      return closest(cosines, onMargin);
    });
    if (next.every((label, i) => label === labels[i])) break;
    labels = next;
    for (const c of range(clusters)) {
      const members = tokens.filter((_, i) => labels[i] === c);
      if (members.length > 0) centroids[c] = mean(members.map((token) => keys[token]));
    }
  }
  return centroids.map((centroid, c) => ({ centroid, members: tokens.filter((_, i) => labels[i] === c) }));
}

function mean(vectors: readonly Vector[]): Vector {
  return vectors[0].map((_, i) => sum(vectors.map((vector) => vector[i])) / vectors.length);
}

/** Place of the largest, ties to the lower. */
function closest(cosines: readonly number[], onMargin: (margin: number) => void): number {
  const best = cosines.indexOf(Math.max(...cosines));
  cosines.forEach((cosine, c) => c !== best && onMargin(cosines[best] - cosine));
  return best;
}

/** One KV head of a sequence. */
export class ClusterKVHead {
  readonly keys: Vector[] = [];
  readonly clusters: Cluster[] = [];
  /** The closest call so far between two centroids or two ranks: below rounding, another implementation may decide otherwise. */
  smallestMargin = Infinity;
  #clustered: number;

  constructor(readonly numbers: ClusterKVNumbers) {
    this.#clustered = numbers.sink;
  }

  /** The prompt's keys: whole segments are clustered, and what is left at its end if it is long enough. */
  prefill(keys: readonly Vector[]): void {
    this.keys.push(...keys);
    const { segment, every } = this.numbers;
    while (this.#unclustered >= segment) this.#build(segment);
    if (this.#unclustered >= every) this.#build(this.#unclustered);
  }

  /** A generated token's key. */
  append(key: Vector): void {
    this.keys.push(key);
    if (this.#unclustered >= this.numbers.every) this.#build(this.#unclustered);
  }

  /** What one step attends: sinks, the tokens of the best clusters until the budget is full, and all tokens not clustered yet. */
  select(queries: readonly Vector[], scale: number): Selected {
    const ranked = this.clusters.filter(({ members }) => members.length > 0);
    const shares = queries.map((q) => softmax(Float64Array.from(ranked, ({ centroid }) => scale * dot(q, centroid))));
    const score = ranked.map((_, c) => sum(shares.map((share) => share[c])));
    const order = range(ranked.length).sort((a, b) => score[b] - score[a] || a - b);
    const recalled: number[] = [];
    for (const [place, c] of order.entries()) {
      if (recalled.length >= this.numbers.budget) break;
      recalled.push(...ranked[c].members.slice(0, this.numbers.budget - recalled.length));
      if (place + 1 < order.length) this.#margin((score[c] - score[order[place + 1]]) / score[c]);
    }
    return { sinks: range(Math.min(this.numbers.sink, this.keys.length)), recalled, tail: range(this.#clustered, this.keys.length) };
  }

  get #unclustered(): number {
    return this.keys.length - this.#clustered;
  }

  #build(tokens: number): void {
    const { tokensPerCluster, iterations } = this.numbers;
    const segment = range(this.#clustered, this.#clustered + tokens);
    const clusters = Math.max(1, Math.round(tokens / tokensPerCluster));
    this.clusters.push(...cluster(this.keys, segment, clusters, iterations, (margin) => this.#margin(margin)));
    this.#clustered += tokens;
  }

  #margin(margin: number): void {
    this.smallestMargin = Math.min(this.smallestMargin, margin);
  }
}
