/** Memory for policies: state of each layer, and scratch that the layers share. */
import type { Arena } from "../device.ts";
import type { Allocator } from "../policies/policy.ts";
import type { Tensor } from "../tensor.ts";
import type { DType } from "../types.ts";
import type { Rows } from "./store.ts";

export class SessionAllocator implements Allocator {
  /** State tensors of all layers, in the order they were asked for: what a mark copies and a saved session holds. */
  readonly state: Tensor[] = [];
  readonly #shared = new Map<string, Tensor>();
  #asked = new Map<string, number>();
  #rows: Rows | undefined;

  constructor(private readonly arena: Arena, private readonly slots: number) {}

  /** A layer begins to ask: scratch starts again from the first of each shape. */
  nextLayer(rows: Rows): void {
    this.#rows = rows;
    this.#asked = new Map();
  }

  tensor(dtype: DType, shape: readonly number[]): Tensor {
    if (shape[0] !== this.slots) {
      throw new RangeError(`Cannot allocate policy state: its first dimension is ${shape[0]}, want ${this.slots} (slots)`);
    }
    const tensor = this.#committed(dtype, shape);
    this.state.push(tensor);
    return tensor;
  }

  perRow(dtype: DType, heads: number, width: number): Tensor {
    const rows = this.#rows!;
    const tensor = this.arena.tensor(dtype, [this.slots, heads, rows.capacity, width]);
    rows.attach(tensor);
    return tensor;
  }

  constant(values: Float32Array, shape: readonly number[]): Tensor {
    const tensor = this.#committed("f32", shape);
    if (values.length !== tensor.elements) {
      throw new RangeError(`Cannot allocate a constant: it has ${values.length} numbers, want ${tensor.elements} ([${shape.join(", ")}])`);
    }
    tensor.write(values);
    return tensor;
  }

  scratch(dtype: DType, shape: readonly number[]): Tensor {
    const kind = `${dtype}[${shape.join(", ")}]`;
    const place = this.#asked.get(kind) ?? 0;
    this.#asked.set(kind, place + 1);
    const name = `${kind} ${place}`;
    let tensor = this.#shared.get(name);
    if (!tensor) this.#shared.set(name, tensor = this.#committed(dtype, shape));
    return tensor;
  }

  #committed(dtype: DType, shape: readonly number[]): Tensor {
    const tensor = this.arena.tensor(dtype, shape);
    tensor.commit(shape.at(-2) ?? 1);
    return tensor;
  }
}
