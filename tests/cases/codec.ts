/** Numbers as tensors and weight files hold them, to and from f64. */
import type { DType, Plain } from "../reference/plain.ts";

const f32 = new Float32Array(1);
const bits = new Uint32Array(f32.buffer);

function toBf16(x: number): number {
  f32[0] = x;
  return Number.isNaN(x) ? 0x7fc0 : (bits[0] + 0x7fff + ((bits[0] >>> 16) & 1)) >>> 16;
}

function fromBf16(half: number): number {
  bits[0] = half << 16;
  return f32[0];
}

function nearestEven(x: number): number {
  const floor = Math.floor(x);
  return x - floor === 0.5 ? 2 * Math.round(floor / 2) : Math.round(x);
}

/** A row of signed bytes and its scale: the largest magnitude is 127. A row that holds a NaN gets a NaN scale. */
function encodeQ8(bytes: DataView, offset: number, row: Float64Array): void {
  const largest = row.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
  row.forEach((x, i) => bytes.setInt8(offset + i, largest > 0 ? nearestEven((x * 127) / largest) : 0));
  if (Number.isNaN(largest)) bytes.setUint32(offset + row.length, 0x7fc00000, true); // setFloat32 may write any NaN
  else bytes.setFloat32(offset + row.length, largest / 127, true);
}

/** The bytes of a tensor. */
export function encode(array: Plain): Uint8Array<ArrayBuffer> {
  const { dtype, data, shape } = array;
  switch (dtype) {
    case "f32":
      return new Uint8Array(new Float32Array(data).buffer);
    case "i32":
      return new Uint8Array(new Int32Array(data).buffer);
    case "u32":
      return new Uint8Array(new Uint32Array(data).buffer);
    case "f16":
      return new Uint8Array(new Float16Array(data).buffer);
    case "bf16":
      return new Uint8Array(new Uint16Array(data.map(toBf16)).buffer);
    case "q8": {
      const width = shape[shape.length - 1];
      const bytes = new Uint8Array((data.length / width) * (width + 4));
      const view = new DataView(bytes.buffer);
      for (let row = 0; row * width < data.length; row++) {
        encodeQ8(view, row * (width + 4), data.subarray(row * width, (row + 1) * width));
      }
      return bytes;
    }
  }
}

/** The numbers that bytes of a tensor stand for. `width`: the last dimension. */
export function decode(dtype: DType, bytes: Uint8Array<ArrayBuffer>, width: number): Float64Array {
  switch (dtype) {
    case "f32":
      return new Float64Array(new Float32Array(bytes.buffer));
    case "i32":
      return new Float64Array(new Int32Array(bytes.buffer));
    case "u32":
      return new Float64Array(new Uint32Array(bytes.buffer));
    case "f16":
      return new Float64Array(new Float16Array(bytes.buffer));
    case "bf16":
      return new Float64Array(new Uint16Array(bytes.buffer)).map(fromBf16);
    case "q8": {
      const view = new DataView(bytes.buffer);
      return Float64Array.from({ length: (bytes.length / (width + 4)) * width }, (_, i) => {
        const row = Math.floor(i / width) * (width + 4);
        return view.getInt8(row + (i % width)) * view.getFloat32(row + width, true);
      });
    }
  }
}

/** Bytes that one element of a tensor takes (a q8 row's scale aside). */
export function elementBytes(dtype: DType): number {
  return dtype === "q8" ? 1 : dtype === "f16" || dtype === "bf16" ? 2 : 4;
}

/** Half the step between neighbouring numbers of a dtype, relative to the largest of a row: what storing a number may cost. */
export const storingError: Readonly<Record<DType, number>> = { f32: 2 ** -24, f16: 2 ** -11, bf16: 2 ** -8, q8: 0.5 / 127, i32: 0, u32: 0 };
