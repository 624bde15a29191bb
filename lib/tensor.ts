/** A tensor: a handle with a dtype and a shape. Its numbers live on the device; only `write` and `read` move them. */
import type { DType, TensorData } from "./types.ts";

/** What a tensor needs of the arena that holds it. */
export interface TensorHost {
  write(tensor: Tensor, data: ArrayBufferView, offset: number): void;
  read(tensor: Tensor, offset: number, count: number): Promise<Uint8Array<ArrayBuffer>>;
  commit(tensor: Tensor, rows: number, slot: number): void;
  release(tensor: Tensor, slot: number, row: number): void;
}

/** Numbers on a device: a handle with a dtype and a shape. Sessions, allocators and devices make them. */
export class Tensor {
  /** @internal */
  constructor(
    /** @internal */
    readonly host: TensorHost,
    /** @internal */
    readonly handle: number,
    /** dtype of the elements. */
    readonly dtype: DType,
    /** Extents, row-major. */
    readonly shape: readonly number[],
  ) {}

  /** Number of elements. */
  get elements(): number {
    return this.shape.reduce((product, extent) => product * extent, 1);
  }

  /** Bytes of one row of the last dimension. */
  get rowBytes(): number {
    return rowBytes(this.dtype, this.shape.at(-1) ?? 1);
  }

  /** Enqueues a copy of `data` to the elements from `offset` on; `data` may be changed as soon as this returns. */
  write(data: ArrayBufferView, offset = 0): void {
    this.host.write(this, data, offset);
  }

  /** Waits for everything enqueued before, then copies `count` elements from `offset` on to the host. */
  async read(offset = 0, count: number = this.elements - offset): Promise<TensorData> {
    const bytes = await this.host.read(this, offset, count);
    return asData(this.dtype, bytes);
  }

  /** Commits memory for `rows` rows (second-to-last dimension) of every plane of a slot, or of all slots. Throws RecallError `RKV_MEMORY`. */
  commit(rows: number, slot = -1): void {
    this.host.commit(this, rows, slot);
  }

  /** Gives back the memory of rows from `row` on in the planes of one slot. */
  release(slot: number, row: number): void {
    this.host.release(this, slot, row);
  }
}

/** Bytes of a row of `width` elements. */
export function rowBytes(dtype: DType, width: number): number {
  if (dtype === "q8") return width + 4;
  return width * (dtype === "f16" || dtype === "bf16" ? 2 : 4);
}

function asData(dtype: DType, bytes: Uint8Array<ArrayBuffer>): TensorData {
  switch (dtype) {
    case "f32":
      return new Float32Array(bytes.buffer, 0, bytes.byteLength / 4);
    case "i32":
      return new Int32Array(bytes.buffer, 0, bytes.byteLength / 4);
    case "u32":
      return new Uint32Array(bytes.buffer, 0, bytes.byteLength / 4);
    case "f16":
    case "bf16":
      return new Uint16Array(bytes.buffer, 0, bytes.byteLength / 2);
    case "q8":
      return bytes;
  }
}
