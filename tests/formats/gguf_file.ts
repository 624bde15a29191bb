/** Writing GGUF files, sound ones and damaged ones. */

export type Value = { kind: number; bytes: number[] };
export interface StoredTensor {
  name: string;
  /** Row length first, as the file has them. */
  dims: (number | bigint)[];
  type: number;
  offset: number | bigint;
}

const le = (size: number, set: (view: DataView) => void): number[] => {
  const bytes = new Uint8Array(size);
  set(new DataView(bytes.buffer));
  return [...bytes];
};
export const u32 = (value: number) => le(4, (view) => view.setUint32(0, value, true));
export const u64 = (value: number | bigint) => le(8, (view) => view.setBigUint64(0, BigInt(value), true));
export const text = (value: string) => {
  const bytes = new TextEncoder().encode(value);
  return [...u64(bytes.length), ...bytes];
};

export const value = {
  u8: (n: number): Value => ({ kind: 0, bytes: [n] }),
  u16: (n: number): Value => ({ kind: 2, bytes: [n & 255, n >> 8] }),
  u32: (n: number): Value => ({ kind: 4, bytes: u32(n) }),
  i32: (n: number): Value => ({ kind: 5, bytes: u32(n >>> 0) }),
  f32: (n: number): Value => ({ kind: 6, bytes: le(4, (view) => view.setFloat32(0, n, true)) }),
  bool: (on: boolean): Value => ({ kind: 7, bytes: [on ? 1 : 0] }),
  string: (s: string): Value => ({ kind: 8, bytes: text(s) }),
  strings: (all: string[]): Value => ({ kind: 9, bytes: [...u32(8), ...u64(all.length), ...all.flatMap(text)] }),
  i32s: (all: number[]): Value => ({ kind: 9, bytes: [...u32(5), ...u64(all.length), ...all.flatMap((n) => u32(n >>> 0))] }),
  u64: (n: number | bigint): Value => ({ kind: 10, bytes: u64(n) }),
};

export interface Parts {
  magic?: string;
  version?: number;
  metadata?: [key: string, value: Value][];
  tensors?: StoredTensor[];
  /** Counts that the header says, where they are not the true ones. */
  counts?: { tensors?: number | bigint; metadata?: number | bigint };
  /** Bytes of tensors, after the padding. */
  data?: number;
}

export function ggufFile({ magic = "GGUF", version = 3, metadata = [], tensors = [], counts = {}, data = 0 }: Parts): Uint8Array {
  const header = [
    ...new TextEncoder().encode(magic),
    ...u32(version),
    ...u64(counts.tensors ?? tensors.length),
    ...u64(counts.metadata ?? metadata.length),
    ...metadata.flatMap(([key, { kind, bytes }]) => [...text(key), ...u32(kind), ...bytes]),
    ...tensors.flatMap((
      { name, dims, type, offset },
    ) => [...text(name), ...u32(dims.length), ...dims.flatMap(u64), ...u32(type), ...u64(offset)]),
  ];
  const file = new Uint8Array(Math.ceil(header.length / 32) * 32 + data);
  file.set(header);
  return file;
}
