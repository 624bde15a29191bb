/** The values of a GGUF header, read from the bytes at hand; every length is held against the file's size before it is used. */
import { count } from "../format.ts";
import { FormatError } from "./checkpoint.ts";

export type GgufValue = number | boolean | string | readonly string[] | GgufNumbers;
export type GgufNumbers = Uint8Array | Int8Array | Uint16Array | Int16Array | Uint32Array | Int32Array | Float32Array | Float64Array;
export type GgufMetadata = ReadonlyMap<string, GgufValue>;

/** The bytes at hand end before the header does: at least `bytes` of the file are wanted. */
export class NeedsMore {
  constructor(readonly bytes: number) {}
}

const kinds = ["u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"] as const;
type Kind = (typeof kinds)[number];

/** Bytes of a value, or the fewest that it can have. */
const widths: Readonly<Record<Kind, number>> = {
  u8: 1,
  i8: 1,
  u16: 2,
  i16: 2,
  u32: 4,
  i32: 4,
  f32: 4,
  bool: 1,
  string: 8,
  array: 12,
  u64: 8,
  i64: 8,
  f64: 8,
}; // deno-fmt-ignore

const arrays = { u8: Uint8Array, i8: Int8Array, u16: Uint16Array, i16: Int16Array, u32: Uint32Array, i32: Int32Array, f32: Float32Array, f64: Float64Array };

const decoder = new TextDecoder();

export class GgufCursor {
  at = 0;
  readonly #view: DataView;

  /** `bytes`: the beginning of a file of `size` bytes. */
  constructor(readonly path: string, readonly bytes: Uint8Array, readonly size: number) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  /** Moves past `length` bytes and gives their place. */
  take(length: number, what: string): number {
    const begin = this.at;
    const end = begin + length;
    if (end > this.size) {
      const found = `${what} at byte ${count(begin)} ends at byte ${count(end)} but the file has ${count(this.size)}`;
      throw new FormatError(this.path, `${found} (was it cut, or damaged?)`);
    }
    if (end > this.bytes.length) throw new NeedsMore(end);
    this.at = end;
    return begin;
  }

  u32(what: string): number {
    return this.#view.getUint32(this.take(4, what), true);
  }

  /** A count, size or offset; NaN cannot come out, for what a double cannot hold exceeds every file. */
  u64(what: string): number {
    return Number(this.#view.getBigUint64(this.take(8, what), true));
  }

  string(what: string): string {
    const length = this.u64(`the length of ${what}`);
    const begin = this.take(length, what);
    return decoder.decode(this.bytes.subarray(begin, begin + length));
  }

  /** The number of items that follow, each of at least `width` bytes. */
  items(width: number, what: string): number {
    const items = this.u64(`the number of ${what}`);
    const room = this.size - this.at;
    if (items * width > room) {
      throw new FormatError(
        this.path,
        `it says ${count(items)} ${what}, but the ${count(room)} bytes left hold no more than ${
          count(Math.floor(room / width))
        } (was it cut, or damaged?)`,
      );
    }
    return items;
  }

  /** A value with its kind before it. Texts of a list stay where they are until `take` has reached the end of the header. */
  value(key: string): GgufValue | (() => string[]) {
    const kind = this.#kind(key);
    if (kind !== "array") return this.#scalar(kind, key);
    const of = this.#kind(key);
    if (of === "array") throw new FormatError(this.path, `${key} is a list of lists, want a list of numbers or texts`);
    const items = this.items(widths[of], `items in ${key}`);
    if (of === "string") return this.#strings(items, key);
    const begin = this.take(items * widths[of], key);
    if (of === "bool") return Uint8Array.from({ length: items }, (_, i) => this.#bool(begin + i, key) ? 1 : 0);
    if (of === "u64" || of === "i64") {
      return Float64Array.from({ length: items }, (_, i) => Number(this.#view.getBigInt64(begin + 8 * i, true)));
    }
    return new arrays[of](this.bytes.slice(begin, this.at).buffer as ArrayBuffer);
  }

  #kind(key: string): Kind {
    const number = this.u32(`the kind of ${key}`);
    const kind = kinds[number];
    if (!kind) throw new FormatError(this.path, `${key} is of kind ${number}, want 0 to ${kinds.length - 1} (is the file damaged?)`);
    return kind;
  }

  #scalar(kind: Exclude<Kind, "array">, key: string): GgufValue {
    if (kind === "string") return this.string(key);
    const at = this.take(widths[kind], key);
    const view = this.#view;
    switch (kind) {
      case "u8":
        return view.getUint8(at);
      case "i8":
        return view.getInt8(at);
      case "u16":
        return view.getUint16(at, true);
      case "i16":
        return view.getInt16(at, true);
      case "u32":
        return view.getUint32(at, true);
      case "i32":
        return view.getInt32(at, true);
      case "f32":
        return view.getFloat32(at, true);
      case "f64":
        return view.getFloat64(at, true);
      case "u64":
        return Number(view.getBigUint64(at, true));
      case "i64":
        return Number(view.getBigInt64(at, true));
      case "bool":
        return this.#bool(at, key);
    }
  }

  #bool(at: number, key: string): boolean {
    const byte = this.#view.getUint8(at);
    if (byte > 1) throw new FormatError(this.path, `${key} is ${byte}, want 0 or 1`);
    return byte === 1;
  }

  /** Steps over the texts of a list; they are made when they are asked for. */
  #strings(items: number, key: string): () => string[] {
    const begin = this.at;
    for (let i = 0; i < items; i++) this.take(this.u64(`the length of a text in ${key}`), `a text in ${key}`);
    return () => {
      let at = begin;
      return Array.from({ length: items }, () => {
        const text = at + 8;
        at = text + Number(this.#view.getBigUint64(at, true));
        return decoder.decode(this.bytes.subarray(text, at));
      });
    };
  }
}
