/** Memory for policies: state of each layer, and scratch that the layers share. */
import type { Arena } from "../device.ts";
import type { Allocator } from "../policies/policy.ts";
import type { Tensor } from "../tensor.ts";
import type { DType } from "../types.ts";

export class SessionAllocator implements Allocator {
  /** State tensors of all layers, in the order they were asked for: what a mark copies and a saved session holds. */
  readonly state: Tensor[] = [];
  readonly #shared = new Map<string, Tensor>();
  #asked = new Map<string, number>();

  constructor(private readonly arena: Arena, private readonly slots: number) {}

  /** A layer begins to ask: scratch starts again from the first of each shape. */
  nextLayer(): void {
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
