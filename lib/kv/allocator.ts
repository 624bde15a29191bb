/** Memory for policies: state of each layer, and scratch that the layers share. */
import type { Arena } from "../device.ts";
import type { Allocator } from "../policies/policy.ts";
import type { Tensor } from "../tensor.ts";
import type { DType } from "../types.ts";
import type { Rows } from "./store.ts";

/** State of up to so many bytes per slot is emptied by writing; more is given back and taken anew. */
const SMALL = 1 << 20;

export class SessionAllocator implements Allocator {
  /** State tensors of all layers, in the order they were asked for: what a mark copies and a saved session holds. */
  readonly state: Tensor[] = [];
  readonly #fills = new Map<Tensor, number>();
  readonly #shared = new Map<string, Tensor>();
  #asked = new Map<string, number>();
  #rows: Rows | undefined;
  #rotations: Tensor | undefined;

  /** `makeRotations`: of every position. */
  constructor(private readonly arena: Arena, private readonly slots: number, private readonly makeRotations: () => Tensor) {}

  /** A layer begins to ask: scratch starts again from the first of each shape. */
  nextLayer(rows: Rows): void {
    this.#rows = rows;
    this.#asked = new Map();
  }

  tensor(dtype: DType, shape: readonly number[], fill = 0): Tensor {
    if (shape[0] !== this.slots) {
      throw new RangeError(`Cannot allocate policy state: its first dimension is ${shape[0]}, want ${this.slots} (slots)`);
    }
    const tensor = this.#committed(dtype, shape);
    this.state.push(tensor);
    if (fill !== 0) this.#fills.set(tensor, fill);
    for (let slot = 0; slot < this.slots && fill !== 0; slot++) this.#fill(tensor, slot, fill);
    return tensor;
  }

  perRow(dtype: DType, heads: number, width: number): Tensor {
    const rows = this.#rows!;
    const tensor = this.arena.tensor(dtype, [this.slots, heads, rows.capacity, width]);
    rows.attach(tensor);
    return tensor;
  }

  constant(values: Float32Array | Int32Array, shape: readonly number[]): Tensor {
    const tensor = this.#committed(values instanceof Float32Array ? "f32" : "i32", shape);
    if (values.length !== tensor.elements) {
      throw new RangeError(`Cannot allocate a constant: it has ${values.length} numbers, want ${tensor.elements} ([${shape.join(", ")}])`);
    }
    tensor.write(values);
    return tensor;
  }

  rotations(): Tensor {
    return this.#rotations ??= this.makeRotations();
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

  /** State of an empty slot. */
  reset(slot: number): void {
    for (const tensor of this.state) {
      const fill = this.#fills.get(tensor) ?? 0;
      if (fill === 0 && tensor.shape.length > 2 && bytesOf(tensor) / this.slots > SMALL) {
        tensor.release(slot, 0);
        tensor.commit(tensor.shape.at(-2)!, slot);
      } else {
        this.#fill(tensor, slot, fill);
      }
    }
  }

  #fill(tensor: Tensor, slot: number, fill: number): void {
    const elements = tensor.elements / this.slots;
    const words = new Float32Array(Math.ceil(bytesOf(tensor) / this.slots / 4));
    if (fill !== 0) tensor.dtype === "f32" ? words.fill(fill) : new Int32Array(words.buffer).fill(fill);
    tensor.write(new Uint8Array(words.buffer, 0, bytesOf(tensor) / this.slots), slot * elements);
  }

  #committed(dtype: DType, shape: readonly number[]): Tensor {
    const tensor = this.arena.tensor(dtype, shape);
    tensor.commit(shape.at(-2) ?? shape[0]);
    return tensor;
  }
}

function bytesOf(tensor: Tensor): number {
  return (tensor.elements / tensor.shape.at(-1)!) * tensor.rowBytes;
}
