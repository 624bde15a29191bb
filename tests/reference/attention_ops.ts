/** Attention, as ffi/recallkv.h states it. */
import { addScaled, dot, logSumExp, r, softmax } from "./numbers.ts";
import { addToCounter, at, type Layer, type Plain, range, type Rows } from "./plain.ts";

/** Softmax attention of one query over chosen rows of a KV head. Over none: zeros, and a log-sum-exp of -inf. */
function attention(q: Float64Array, rows: Rows, layer: Layer, s: number, kvHead: number, seen: number[]) {
  const { scale, softCap } = layer;
  const logits = Float64Array.from(seen, (row) => {
    const logit = r(dot(q, at(rows.keys, s, kvHead, row)) * scale);
    return softCap > 0 ? r(softCap * r(Math.tanh(r(logit / softCap)))) : logit;
  });
  const weights = softmax(logits);
  const out = new Float64Array(layer.headDim);
  seen.forEach((row, j) => addScaled(out, weights[j], at(rows.values, s, kvHead, row)));
  return { out, lse: logSumExp(logits) };
}

/** Whether a layer's window shows `row` to a query at `position`. */
function inWindow(rows: Rows, layer: Layer, s: number, kvHead: number, position: number, row: number): boolean {
  return layer.window === 0 || position - at(rows.rowPosition, s, kvHead, row)[0] < layer.window;
}

export function attendChunk(attended: Plain, lse: Plain | null, q: Plain, rows: Rows, layer: Layer, slot: number, count: number): void {
  const begin = at(rows.rowEnd, rows.layer, slot)[0] - count;
  for (const i of range(count)) {
    for (const g of range(layer.heads)) {
      const kvHead = Math.floor(g / (layer.heads / layer.kvHeads));
      const position = at(rows.rowPosition, slot, kvHead, begin + i)[0];
      const seen = range(begin + i + 1).filter((row) => inWindow(rows, layer, slot, kvHead, position, row));
      const result = attention(at(q, i, g), rows, layer, slot, kvHead, seen);
      at(attended, i, g).set(result.out);
      if (lse) at(lse, i, g)[0] = result.lse;
    }
  }
}

export function attend(
  attended: Plain,
  lse: Plain | null,
  q: Plain,
  rows: Rows,
  layer: Layer,
  index: Plain | null,
  _work: Plain,
  sink: number,
): void {
  const group = layer.heads / layer.kvHeads;
  for (const s of range(rows.active.shape[0]).filter((slot) => rows.active.data[slot] !== 0)) {
    const rowEnd = at(rows.rowEnd, rows.layer, s)[0];
    const tailBegin = Math.max(at(rows.tailBegin, rows.layer, s)[0], sink);
    const read = [0, 0, 0]; // rows of sink, index, tail, summed over heads
    for (const g of range(layer.heads)) {
      const kvHead = Math.floor(g / group);
      const position = rowEnd > 0 ? at(rows.rowPosition, s, kvHead, rowEnd - 1)[0] : 0;
      const chosen = index ? [...at(index, s, index.shape[1] === layer.heads ? g : kvHead)] : [];
      const sources = [
        range(Math.min(sink, rowEnd)),
        chosen.filter((row) => row >= 0 && row < rowEnd),
        range(tailBegin, rowEnd).filter((row) => inWindow(rows, layer, s, kvHead, position, row)),
      ];
      const result = attention(at(q, s, g), rows, layer, s, kvHead, sources.flat());
      at(attended, s, g).set(result.out);
      if (lse) at(lse, s, g)[0] = result.lse;
      sources.forEach((source, i) => read[i] += source.length);
    }
    const counters = at(rows.attended, rows.layer, s);
    read.forEach((count, source) => addToCounter(counters.subarray(2 * source), Math.floor(count / group)));
  }
}
