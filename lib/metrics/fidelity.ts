/** How close a policy's attention comes to the exact one, on its own queries. */
import type { Session } from "../session.ts";
import type { LayerView, Probe } from "./probe.ts";

/** Means over query heads and over the layers that the policy does not exempt. */
export interface Fidelity {
  /** Of as many rows of greatest exact weight as were read, the share that was read. Source: ClusterKV (arXiv 2412.03213) 5.2. */
  readonly recallRate: number;
  /** Exact attention that the rows read would have drawn. */
  readonly mass: number;
  /** |output - exact output| / |exact output|. */
  readonly error: number;
  /** Rows read per query head. */
  readonly rows: number;
}

/** Who has every row, where the policy gave some back: a session with `full()` that was fed the same tokens. */
export interface Witness {
  /** Watches the session. */
  readonly probe: Probe;
  /** Holds every row of the text. */
  readonly session: Session;
  /** Which sequence of the batch. */
  readonly slot?: number;
}

/**
 * Holds the last step of a slot against exact attention in f64 over all rows of the text: the session's own, and those of `witness` where it
 * holds them no more. Sessions must have f32 rows.
 */
export async function fidelity(probe: Probe, session: Session, options: { slot?: number; witness?: Witness } = {}): Promise<Fidelity> {
  const { slot = 0, witness } = options;
  const sums = { recallRate: 0, mass: 0, error: 0, rows: 0, heads: 0 };
  const others = witness?.probe.layers(witness.session, witness.slot);
  for await (const view of probe.layers(session, slot)) {
    const other = (await others?.next())?.value ?? undefined;
    if (!view.q || !view.attended) continue;
    for (let h = 0; h < view.kvHeads; h++) {
      const text = rowsOfText(view, other, h, session.length(slot));
      for (let g = h * view.heads / view.kvHeads; g < (h + 1) * view.heads / view.kvHeads; g++) add(sums, view, text, h, g);
    }
  }
  const { heads } = sums;
  return { recallRate: sums.recallRate / heads, mass: sums.mass / heads, error: sums.error / heads, rows: sums.rows / heads };
}

interface Text {
  /** One key and value for each place in the text that anybody holds. */
  readonly keys: readonly Float32Array[];
  readonly values: readonly Float32Array[];
  /** Place -> which of them; -1: nobody holds it. */
  readonly at: Int32Array;
}

/** Rows of one KV head: held ones as they are, the rest from the witness. */
function rowsOfText(view: LayerView, other: LayerView | undefined, h: number, length: number): Text {
  const [keys, values, at]: [Float32Array[], Float32Array[], Int32Array] = [[], [], new Int32Array(length).fill(-1)];
  for (const source of [view, other]) {
    if (!source) continue;
    const { headDim } = source;
    for (let row = 0; row < source.held; row++) {
      const place = source.position[h][row];
      if (place >= length || at[place] >= 0) continue;
      at[place] = keys.length;
      keys.push(source.keys[h].subarray(row * headDim, (row + 1) * headDim));
      values.push(source.values[h].subarray(row * headDim, (row + 1) * headDim));
    }
  }
  return { keys, values, at };
}

function add(
  sums: { -readonly [K in keyof Fidelity]: number } & { heads: number },
  view: LayerView,
  text: Text,
  h: number,
  g: number,
): void {
  const { headDim, scale } = view;
  const q = view.q!.subarray(g * headDim, (g + 1) * headDim);
  const logits = text.keys.map((key) => scale * dot(q, key));
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const weights = logits.map((logit) => Math.exp(logit - most));
  const total = weights.reduce((a, b) => a + b, 0);
  const exact = new Float64Array(headDim);
  text.values.forEach((value, i) => {
    for (let d = 0; d < headDim; d++) exact[d] += weights[i] / total * value[d];
  });
  const read = new Set(view.read[g].map((row) => text.at[view.position[h][row]]));
  const best = weights.map((_, i) => i).sort((a, b) => weights[b] - weights[a]).slice(0, read.size);
  let [off, size] = [0, 0];
  for (let d = 0; d < headDim; d++) {
    off += (view.attended![g * headDim + d] - exact[d]) ** 2;
    size += exact[d] ** 2;
  }
  sums.recallRate += best.filter((i) => read.has(i)).length / Math.max(1, best.length);
  sums.mass += [...read].reduce((sum, i) => sum + weights[i], 0) / total;
  sums.error += Math.sqrt(off / size);
  sums.rows += read.size;
  sums.heads++;
}

function dot(a: Float32Array, b: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}
