/** Room for what flows through the decoder. */
import type { Activations } from "./decoder.ts";
import type { Arena } from "./device.ts";
import type { LoadedModel } from "./model.ts";
import type { Tensor } from "./tensor.ts";

/** Room for `rows` rows at a time; `attendWork`: floats that decode attention needs beside. */
export function activations(arena: Arena, { shape }: LoadedModel, rows: number, attendWork: number): Activations {
  const { hidden, heads, kvHeads, headDim, intermediate } = shape;
  const perRow = Math.max(hidden + 2 * kvHeads * headDim, hidden + 2 * intermediate);
  return {
    x: committed(arena, [rows, hidden]),
    q: committed(arena, [rows, heads, headDim]),
    attended: committed(arena, [rows, heads, headDim]),
    lse: committed(arena, [rows, heads]),
    rotations: committed(arena, [rows, 2, shape.rope.dim / 2]),
    work: committed(arena, [Math.max(rows * perRow, attendWork)]),
  };
}

/** Cosines and sines of every position: f32[capacity, 2, ropeDim / 2]. */
export function everyRotation(arena: Arena, { shape, weights, device }: LoadedModel, capacity: number): Tensor {
  const half = shape.rope.dim / 2;
  const rotations = committed(arena, [capacity, 2, half]);
  const some = Math.min(1024, capacity);
  const piece = committed(arena, [some, 2, half]);
  const position = arena.tensor("i32", [some]);
  for (let begin = 0; begin < capacity; begin += some) {
    const count = Math.min(some, capacity - begin);
    position.write(Int32Array.from({ length: count }, (_, i) => begin + i));
    device.kernels.rotations(piece, position, weights.frequencies, weights.rotationFactor, count);
    device.kernels.copy(rotations, 2 * begin, piece, 0, 2 * count);
  }
  return rotations;
}

/** f32, all of it at hand. */
export function committed(arena: Arena, shape: readonly number[]): Tensor {
  const tensor = arena.tensor("f32", shape);
  tensor.commit(shape.at(-2) ?? shape[0]);
  return tensor;
}
