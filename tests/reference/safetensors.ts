/** Weights of a safetensors file as plain matrices: for the reference decoder. F32 and BF16. */
import type { Matrix } from "./plain.ts";

interface Entry {
  readonly dtype: string;
  readonly shape: number[];
  readonly data_offsets: [number, number];
}

/** Names to matrices, unpacked on first use. A vector has one row. */
export function readSafetensors(file: Uint8Array): (name: string) => Matrix {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const headerBytes = Number(view.getBigUint64(0, true));
  const header: Record<string, Entry> = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + headerBytes)));
  const held = new Map<string, Matrix>();
  return (name) => {
    const found = held.get(name);
    if (found) return found;
    const { dtype, shape, data_offsets: [begin, end] } = header[name];
    const bytes = dtype === "F32" ? 4 : dtype === "BF16" ? 2 : NaN;
    const data = Float64Array.from({ length: (end - begin) / bytes }, (_, i) => {
      const offset = 8 + headerBytes + begin + i * bytes;
      return bytes === 4 ? view.getFloat32(offset, true) : bf16(view.getUint16(offset, true));
    });
    const cols = shape[shape.length - 1];
    const matrix = { rows: data.length / cols, cols, data };
    held.set(name, matrix);
    return matrix;
  };
}

const bits = new DataView(new ArrayBuffer(4));

function bf16(half: number): number {
  bits.setUint32(0, half << 16);
  return bits.getFloat32(0);
}
