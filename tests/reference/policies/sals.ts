/**
 * SALS (arXiv 2510.24273) as its paper tells it, in f64: no code of it is published. Keys of all heads lie side by side, before rotation.
 * Left open by the paper and decided here: the queries of a group, each in its own head's channels, are summed (all heads choose
 * together); of equal scores the earlier row is better; directions are those of keys that are not centred.
 */

export interface SALSProblem {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Base of the rotation: pair i of a head turns by position * base^(-2i / headDim); its halves are i and i + headDim / 2. */
  readonly base: number;
  /** [rows][kvHeads * headDim], not rotated; row i stands at position i. */
  readonly keys: readonly (readonly number[])[];
  readonly values: readonly (readonly number[])[];
  /** [heads][headDim], not rotated; the query stands at `position`. */
  readonly q: readonly (readonly number[])[];
  readonly position: number;
  /** [kvHeads * headDim][rank]: U, its columns the weightiest first. */
  readonly projection: readonly (readonly number[])[];
  /** r*: how many of the columns rank. */
  readonly ranked: number;
  /** N_c: how many rows are chosen, of those from `sink` on and before `tail`. */
  readonly budget: number;
  readonly sink: number;
  readonly tail: number;
}

export interface SALSAnswer {
  /** [rows][rank]. */
  readonly latents: number[][];
  /** Of each row from `sink` to `tail`. */
  readonly scores: number[];
  /** Rows, best first. */
  readonly chosen: number[];
  /** [chosen][kvHeads * headDim], rotated to where they stood. */
  readonly keys: number[][];
  /** [heads][headDim]: attention over the chosen rows with these keys, and over sink and tail with their own. */
  readonly attended: number[][];
}

export function sals(problem: SALSProblem): SALSAnswer {
  const { heads, kvHeads, headDim, base, position, projection, ranked, budget, sink, tail } = problem;
  const kvHeadOf = (head: number) => Math.floor(head / (heads / kvHeads));
  const columns = transposed(projection);

  // Compress: k~ = k U.
  const latents = problem.keys.map((key) => columns.map((u) => dot(key, u)));

  // Select: q~ = q U, summed over heads; s_j = q~[:r*] . k~_j[:r*], without rotation.
  const latentQuery = columns.map((u) => sum(problem.q.map((q, head) => dot(q, part(u, kvHeadOf(head), headDim)))));
  const scores = latents.slice(sink, tail).map((latent) => dot(latentQuery.slice(0, ranked), latent.slice(0, ranked)));
  const order = scores.map((_, i) => i).sort((a, b) => scores[b] - scores[a] || a - b);
  const chosen = order.slice(0, budget).map((i) => i + sink);

  // Reconstruct: k = k~ U', rotated to its own position.
  const turned = (key: readonly number[], row: number) => range(kvHeads).flatMap((h) => rotated(part(key, h, headDim), row, base));
  const keys = chosen.map((row) => turned(projection.map((u) => dot(latents[row], u)), row));

  const always = problem.keys.map((_, row) => row).filter((row) => row < sink || row >= tail);
  const readKeys = [...keys, ...always.map((row) => turned(problem.keys[row], row))];
  const readRows = [...chosen, ...always];
  const attended = problem.q.map((unturned, head) => {
    const q = rotated(unturned, position, base);
    const logits = readKeys.map((key) => dot(q, part(key, kvHeadOf(head), headDim)) / Math.sqrt(headDim));
    const largest = Math.max(...logits);
    const shares = logits.map((logit) => Math.exp(logit - largest));
    const values = readRows.map((row) => part(problem.values[row], kvHeadOf(head), headDim));
    return range(headDim).map((d) => sum(shares.map((share, i) => share * values[i][d])) / sum(shares));
  });
  return { latents, scores, chosen, keys, attended };
}

/** U of keys [rows][width]: eigenvectors of the sum of k k' as columns [width][rank], by falling eigenvalue; signs are free. */
export function salsProjection(keys: readonly (readonly number[])[], rank: number): number[][] {
  const width = keys[0].length;
  const gram = range(width).map((a) => range(width).map((b) => sum(keys.map((key) => key[a] * key[b]))));
  const { values, vectors } = eigen(gram);
  const order = values.map((_, i) => i).sort((a, b) => values[b] - values[a]).slice(0, rank);
  return vectors.map((row) => order.map((c) => row[c]));
}

/** Eigenvalues and eigenvectors (columns) of a symmetric matrix by Jacobi's rotations. */
function eigen(matrix: readonly (readonly number[])[]): { values: number[]; vectors: number[][] } {
  const m = matrix.map((row) => [...row]);
  const n = m.length;
  const vectors = range(n).map((a) => range(n).map((b) => a === b ? 1 : 0));
  const apart = () => sum(m.flatMap((row, a) => row.map((x, b) => a === b ? 0 : x * x)));
  const enough = 1e-26 * sum(m.flat().map((x) => x * x));
  for (let sweep = 0; sweep < 60 && apart() > enough; sweep++) {
    for (let a = 0; a < n; a++) {
      for (let b = a + 1; b < n; b++) {
        if (m[a][b] === 0) continue;
        const angle = Math.atan2(2 * m[a][b], m[b][b] - m[a][a]) / 2;
        const [c, s] = [Math.cos(angle), Math.sin(angle)];
        for (const row of [...m, ...vectors]) [row[a], row[b]] = [c * row[a] - s * row[b], s * row[a] + c * row[b]];
        for (let k = 0; k < n; k++) [m[a][k], m[b][k]] = [c * m[a][k] - s * m[b][k], s * m[a][k] + c * m[b][k]];
      }
    }
  }
  return { values: m.map((row, i) => row[i]), vectors };
}

function rotated(x: readonly number[], position: number, base: number): number[] {
  const half = x.length / 2;
  const angle = (i: number) => position * base ** (-2 * i / x.length);
  return x.map((value, i) =>
    i < half
      ? value * Math.cos(angle(i)) - x[i + half] * Math.sin(angle(i))
      : value * Math.cos(angle(i - half)) + x[i - half] * Math.sin(angle(i - half))
  );
}

const range = (n: number) => Array.from({ length: n }, (_, i) => i);
const sum = (x: readonly number[]) => x.reduce((total, value) => total + value, 0);
const dot = (x: readonly number[], y: readonly number[]) => sum(x.map((value, i) => value * y[i]));
const part = (x: readonly number[], head: number, headDim: number) => x.slice(head * headDim, (head + 1) * headDim);
const transposed = (m: readonly (readonly number[])[]) => m[0].map((_, c) => m.map((row) => row[c]));
