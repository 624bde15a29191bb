/** Ops of the decoder, as ffi/recallkv.h states them: everything but attention. Arguments in its order, arrays changed in place. */
import { add, product, r, rmsNorm, rotate, silu, sum } from "./numbers.ts";
import { at, type Layer, type Matrix, type Model, type Plain, range, type Rows, STEP } from "./plain.ts";

export function rotations(rotations: Plain, position: Plain, frequencies: Plain, factor: number, count: number): void {
  for (const i of range(count)) {
    const angles = frequencies.data.map((frequency) => position.data[i] * frequency);
    at(rotations, i, 0).set(angles.map((angle) => r(r(Math.cos(angle)) * factor)));
    at(rotations, i, 1).set(angles.map((angle) => r(r(Math.sin(angle)) * factor)));
  }
}

/** Rows of a step that take part: those of active slots; without `active`, all. */
function taking(rows: number[], active: Plain | null): number[] {
  return rows.filter((row) => active === null || active.data[row] !== 0);
}

export function embed(x: Plain, model: Model, token: Plain, active: Plain | null, count: number): void {
  const { data, rows, cols } = model.embed;
  for (const i of taking(range(count), active)) {
    const id = token.data[i];
    if (id >= 0 && id < rows) at(x, i).set(data.subarray(id * cols, (id + 1) * cols));
    else at(x, i).fill(NaN);
  }
}

/** Heads of one product: W h + b, each head normed where the layer has a norm. */
function headsOf(h: Float64Array, layer: Layer, weight: Matrix, bias?: Matrix, norm?: Matrix): Float64Array[] {
  const { headDim, eps } = layer;
  const y = product(weight, h);
  const biased = bias ? add(y, bias.data) : y;
  return range(weight.rows / headDim).map((head) => {
    const part = biased.slice(head * headDim, (head + 1) * headDim);
    return norm ? rmsNorm(part, norm.data, eps) : part;
  });
}

export function attnIn(
  q: Plain,
  rows: Rows,
  x: Plain,
  layer: Layer,
  rotations: Plain,
  position: Plain,
  _work: Plain,
  slot: number,
  count: number,
): void {
  const w = layer.weights;
  const rowEnd = at(rows.rowEnd, rows.layer);
  for (const i of slot === STEP ? taking(range(count), rows.active) : range(count)) {
    const s = slot === STEP ? i : slot;
    const row = rowEnd[s]++;
    const [cos, sin] = [at(rotations, i, 0), at(rotations, i, 1)];
    const h = rmsNorm(at(x, i), w.attnNorm.data, layer.eps);
    headsOf(h, layer, w.q, w.qBias, w.qNorm).forEach((head, g) => at(q, i, g).set(rotate(head, cos, sin)));
    headsOf(h, layer, w.k, w.kBias, w.kNorm).forEach((head, g) => at(rows.keys, s, g, row).set(rotate(head, cos, sin)));
    headsOf(h, layer, w.v, w.vBias).forEach((head, g) => at(rows.values, s, g, row).set(head));
    for (const g of range(layer.kvHeads)) at(rows.rowPosition, s, g, row)[0] = position.data[i];
  }
}

export function queries(
  q: Plain,
  x: Plain,
  layer: Layer,
  active: Plain | null,
  rotations: Plain,
  _work: Plain,
  count: number,
): void {
  const w = layer.weights;
  for (const i of taking(range(count), active)) {
    const h = rmsNorm(at(x, i), w.attnNorm.data, layer.eps);
    headsOf(h, layer, w.q, w.qBias, w.qNorm).forEach((head, g) => at(q, i, g).set(rotate(head, at(rotations, i, 0), at(rotations, i, 1))));
  }
}

export function attnOut(x: Plain, attended: Plain, layer: Layer, active: Plain | null, _work: Plain, count: number): void {
  const w = layer.weights;
  for (const i of taking(range(count), active)) {
    const projected = product(w.o, at(attended, i));
    const middle = add(at(x, i), w.oBias ? add(projected, w.oBias.data) : projected);
    const h = rmsNorm(middle, w.ffnNorm.data, layer.eps);
    const up = product(w.up, h);
    const gated = product(w.gate, h).map((value, c) => r(silu(value) * up[c]));
    at(x, i).set(add(middle, product(w.down, gated)));
  }
}

export function head(logits: Plain, x: Plain, model: Model, active: Plain | null, _work: Plain, first: number, count: number): void {
  for (const i of taking(range(first, first + count), active)) {
    at(logits, i).set(product(model.output ?? model.embed, rmsNorm(at(x, i), model.outputNorm.data, model.eps)));
  }
}

export function greedy(token: Plain, logprob: Plain, logits: Plain, active: Plain | null, first: number, count: number): void {
  for (const i of taking(range(first, first + count), active)) {
    const row = at(logits, i);
    let best = -1;
    for (const id of range(row.length)) if (row[id] > (best < 0 ? -Infinity : row[best]) || (best < 0 && row[id] === -Infinity)) best = id;
    token.data[i] = best;
    const others = row.filter((logit) => !Number.isNaN(logit));
    logprob.data[i] = best < 0 ? NaN : r(-r(Math.log(sum(others.map((logit) => r(Math.exp(r(logit - row[best]))))))));
  }
}

export function advance(position: Plain, active: Plain): void {
  for (const s of taking(range(position.shape[0]), active)) position.data[s] += 1;
}
