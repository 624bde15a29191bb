/**
 * The device: opens the native library, owns memory, and hands out the ops. The only file of lib/ that imports ffi/.
 *
 * Ops run in call order, perhaps later. `read` and `fence` wait for everything enqueued before them. Inside a recording, `read` and
 * allocation throw.
 */
import { bindOps, type Native, native } from "../ffi/native.ts";
import { type Kernels, type LayerHandle, type ModelHandle, opNames, type RowsHandle } from "./kernels.ts";
import { rowBytes, Tensor, type TensorHost } from "./tensor.ts";
import { type DType, dtypes, type WeightType, weightTypes } from "./types.ts";
import { RecallError } from "./errors.ts";

/** How a device is opened. */
export interface OpenOptions {
  /** Width of the CPU pool; all cores unless said. */
  threads?: number;
  /** Each thread of the CPU pool stays on a core of its own: steadier where nothing else runs, slower beside other programs. Linux. */
  pinned?: boolean;
  /** One of `isas()`; the best unless said. */
  isa?: string;
}

/** One matrix or vector in a mapped file: `rows` x `cols` of `type` from byte `offset` on. */
export interface WeightSpan {
  readonly offset: number;
  readonly type: WeightType;
  readonly rows: number;
  readonly cols: number;
  /** Heads whose RoPE pairs are adjacent in the file and must be put back into halves; 0 for all other weights. */
  readonly rotated: number;
}

export interface LayerSizes {
  heads: number;
  kvHeads: number;
  headDim: number;
  window: number;
  ropeDim: number;
}

const LAYER_WEIGHTS = [
  "attnNorm",
  "q",
  "k",
  "v",
  "o",
  "qBias",
  "kBias",
  "vBias",
  "oBias",
  "qNorm",
  "kNorm",
  "ffnNorm",
  "gate",
  "up",
  "down",
] as const;
export type LayerWeight = (typeof LAYER_WEIGHTS)[number];

const encoder = new TextEncoder();
const decoder = new TextDecoder();
const CANCELLED = -10;
const PINNED = 0x10000;

/** Bytes that one checksum is of. */
export const blockBytes = 16 << 10;

function text(fill: (bytes: Uint8Array, length: number) => number): string {
  const bytes = new Uint8Array(1024);
  return decoder.decode(bytes.subarray(0, Math.max(0, fill(bytes, bytes.length))));
}

/** Instruction sets of this machine's CPU that the library has kernels for, best first. */
export function isas(): string[] {
  return text((bytes, length) => native().fn.rkv_isas(bytes, length)).split(" ");
}

/** Opens a device: `"cpu"`, `"cuda"`, or `"auto"` (CUDA where it can be had, else the CPU). */
export function open(kind: "auto" | "cpu" | "cuda" = "auto", options: OpenOptions = {}): Promise<Device> {
  const lib = native();
  const { threads = 0, pinned = false, isa } = options;
  if (!Number.isInteger(threads) || threads < 0 || threads >= PINNED) {
    throw new RangeError(`Cannot open device: threads is ${threads}, want a whole number from 0`);
  }
  const width = threads + (pinned ? PINNED : 0);
  const place = isa === undefined ? 0 : isas().indexOf(isa);
  if (place < 0) throw new RangeError(`Cannot open device: isa is "${isa}", want one of ${isas().join(", ")}`);
  if (kind === "auto") {
    const found = lib.fn.rkv_open(1, width, place);
    if (found > 0) return Promise.resolve(new Device(lib, "cuda", found));
    return open("cpu", options);
  }
  return Promise.resolve(new Device(lib, kind, lib.call("open", lib.fn.rkv_open(kind === "cuda" ? 1 : 0, width, place))));
}

/** A device that ops run on. Make one with `open`, or let `load` do so. */
export class Device {
  /** Its ops. */
  readonly kernels: Kernels;
  #closed = false;

  /** @internal */
  constructor(
    private readonly lib: Native,
    /** Where it computes. */
    readonly kind: "cpu" | "cuda",
    /** @internal */
    readonly handle: number,
  ) {
    this.kernels = bindOps(lib, opNames) as unknown as Kernels;
  }

  /** One line: "cpu avx512bf16, 2 threads". */
  get description(): string {
    return text((bytes, length) => this.lib.call("describe", this.lib.fn.rkv_describe(this.handle, bytes, length)));
  }

  /** Bytes of memory: all there is, and free now. */
  memory(): { total: number; free: number } {
    const sizes = new BigInt64Array(2);
    this.lib.call("deviceMemory", this.lib.fn.rkv_device_memory(this.handle, sizes));
    return { total: Number(sizes[0]), free: Number(sizes[1]) };
  }

  /**
   * Reserves address space for `bytes` bytes of tensors and weights; memory is used only as they are committed.
   * @internal
   */
  arena(bytes: number): Arena {
    return new Arena(this.lib, this, this.lib.call("arena", this.lib.fn.rkv_arena(this.handle, BigInt(Math.ceil(bytes)))));
  }

  /**
   * Maps a file for reading.
   * @internal
   */
  file(path: string): MappedFile {
    const bytes = encoder.encode(path);
    return new MappedFile(this.lib, this.lib.call("file", this.lib.fn.rkv_file(bytes, bytes.length)));
  }

  /** Gives everything back. Nothing of it may be used afterwards. */
  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#closed = true;
    this.lib.fn.rkv_close(this.handle);
  }
}

/** CRC-32C of each 16 KiB of bytes, the last one of what is left. */
export function checksums(bytes: Uint8Array): Uint32Array<ArrayBuffer> {
  const sums = new Uint32Array(Math.ceil(bytes.length / blockBytes));
  const lib = native();
  if (bytes.length > 0) lib.call("checksums", lib.fn.rkv_checksums(sums, bytes, bytes.length));
  return sums;
}

export class MappedFile {
  constructor(private readonly lib: Native, readonly handle: number) {}

  [Symbol.dispose](): void {
    this.lib.fn.rkv_close(this.handle);
  }
}

/** A recorded step that native code walks alone. */
export class Tape {
  constructor(private readonly lib: Native, readonly handle: number) {}

  /** Enqueues every op of the tape. */
  replay(): void {
    this.lib.call("replay", this.lib.fn.rkv_replay(this.handle));
  }
}

/** How often each op ran, and how long it took in all. */
export type OpTimes = Readonly<Record<string, { readonly runs: number; readonly seconds: number }>>;

/** Tensors, weights and tapes that live and die together. */
export class Arena implements TensorHost {
  #closed = false;

  constructor(private readonly lib: Native, readonly device: Device, readonly handle: number) {}

  /** A tensor of zeros. Above 1 MiB its memory comes with `commit`. */
  tensor(dtype: DType, shape: readonly number[]): Tensor {
    const extents = Int32Array.from(shape);
    const handle = this.lib.call("tensor", this.lib.fn.rkv_tensor(this.handle, dtypes.indexOf(dtype), extents, extents.length));
    return new Tensor(this, handle, dtype, [...shape]);
  }

  /** Enqueues the packing of a weight from a mapped file. */
  weight(file: MappedFile, span: WeightSpan): { readonly handle: number } {
    const type = weightTypes.indexOf(span.type);
    return {
      handle: this.lib.call(
        "weight",
        this.lib.fn.rkv_weight(this.handle, file.handle, BigInt(span.offset), type, span.rows, span.cols, span.rotated),
      ),
    };
  }

  layer(
    weights: Partial<Record<LayerWeight, { readonly handle: number }>>,
    sizes: LayerSizes,
    numbers: { eps: number; scale: number; softCap: number },
  ): LayerHandle {
    const handles = Int32Array.from(LAYER_WEIGHTS, (name) => weights[name]?.handle ?? 0);
    const { heads, kvHeads, headDim, window, ropeDim } = sizes;
    const handle = this.lib.fn.rkv_layer(
      this.handle,
      handles,
      Int32Array.of(heads, kvHeads, headDim, window, ropeDim),
      Float64Array.of(numbers.eps, numbers.scale, numbers.softCap),
    );
    return { kind: "layer", handle: this.lib.call("layer", handle) };
  }

  model(embed: { handle: number }, outputNorm: { handle: number }, output: { handle: number } | null, eps: number): ModelHandle {
    const handle = this.lib.fn.rkv_model(this.handle, embed.handle, outputNorm.handle, output?.handle ?? 0, eps);
    return { kind: "model", handle: this.lib.call("model", handle) };
  }

  rows(tensors: readonly Tensor[], layer: number): RowsHandle {
    const handle = this.lib.fn.rkv_rows(this.handle, Int32Array.from(tensors, (tensor) => tensor.handle), layer);
    return { kind: "rows", handle: this.lib.call("rows", handle) };
  }

  /** Notes the ops that `step` enqueues on a tape, instead of running them. */
  record(step: () => void): Tape {
    this.lib.call("record", this.lib.fn.rkv_record(this.handle));
    try {
      step();
    } catch (error) {
      this.lib.fn.rkv_record_end(this.handle); // what was noted goes with the arena
      throw error;
    }
    return new Tape(this.lib, this.lib.call("recordEnd", this.lib.fn.rkv_record_end(this.handle)));
  }

  /** Resolves when everything enqueued so far has run: true, or false when `cancel` cut it short. Throws what poisoned the arena. */
  async fence(): Promise<boolean> {
    return this.#settle(await this.lib.finished(this.device.handle, this.lib.call("fence", this.lib.fn.rkv_fence(this.handle))));
  }

  /** While on, ops of this arena end at their next piece and later ones are skipped. */
  cancel(on: boolean): void {
    this.lib.call("cancel", this.lib.fn.rkv_cancel(this.handle, on ? 1 : 0));
  }

  /** Bytes: address space reserved, part of it handed out, memory committed. */
  memory(): { reserved: number; used: number; committed: number } {
    const sizes = new BigInt64Array(3);
    this.lib.call("arenaMemory", this.lib.fn.rkv_arena_memory(this.handle, sizes));
    return { reserved: Number(sizes[0]), used: Number(sizes[1]), committed: Number(sizes[2]) };
  }

  /** Enqueues the filling of `count` elements with a file's bytes from `at` on; `sums` gets their checksums, from element `first` on. */
  load(tensor: Tensor, offset: number, count: number, file: MappedFile, at: number, sums: Tensor, first: number): void {
    this.lib.call("load", this.lib.fn.rkv_load_rows(sums.handle, first, tensor.handle, offset, count, file.handle, BigInt(at)));
  }

  /** Starts or stops adding up the time of each op: on a GPU steps are then run op by op; or the host's time of starting recorded steps. */
  clock(on: boolean | "replays"): void {
    this.lib.call("clock", this.lib.fn.rkv_clock(this.handle, on === "replays" ? 2 : Number(on)));
  }

  /** Runs and seconds of each op that ran while the clock went; the last ones after a fence. */
  times(): OpTimes {
    const times = new BigInt64Array(128);
    const count = this.lib.call("times", this.lib.fn.rkv_times(this.handle, times));
    const entries = Array.from(
      { length: count },
      (_, op) => ({ op, runs: Number(times[2 * op]), seconds: Number(times[2 * op + 1]) / 1e9 }),
    );
    return Object.fromEntries(entries.filter(({ runs }) => runs > 0).map(({ op, ...time }) => [this.#opName(op), time]));
  }

  #opName(op: number): string {
    const name = text((bytes, length) => this.lib.call("opName", this.lib.fn.rkv_op_name(op, bytes, length)));
    return name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
  }

  write(tensor: Tensor, data: ArrayBufferView, offset: number): void {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    this.lib.call("write", this.lib.fn.rkv_write(tensor.handle, offset, bytes, bytes.length));
  }

  async read(tensor: Tensor, offset: number, count: number): Promise<Uint8Array<ArrayBuffer>> {
    const width = tensor.dtype === "q8" ? tensor.shape.at(-1)! : 1;
    const bytes = new Uint8Array(width === 0 ? 0 : (count / width) * rowBytes(tensor.dtype, width));
    if (bytes.length === 0 && count === 0) return bytes; // an index of width 0 is legal, and so is reading it
    const job = this.lib.call("read", this.lib.fn.rkv_read(tensor.handle, offset, count));
    const code = await this.lib.finished(this.device.handle, job);
    this.lib.call("take", this.lib.fn.rkv_take(job, bytes, bytes.length));
    if (!this.#settle(code)) throw new RecallError("RKV_CANCELLED", "read", "Cannot read: the work before it was cancelled");
    return bytes;
  }

  commit(tensor: Tensor, rows: number, slot: number): void {
    this.lib.call("commit", this.lib.fn.rkv_commit(tensor.handle, slot, rows));
  }

  release(tensor: Tensor, slot: number, row: number): void {
    this.lib.call("release", this.lib.fn.rkv_release(tensor.handle, slot, row));
  }

  #settle(code: number): boolean {
    if (code === 0) return true;
    if (code === CANCELLED) return false;
    const fault = text((bytes, length) => this.lib.call("fault", this.lib.fn.rkv_fault(this.handle, bytes, length)));
    throw new RecallError("RKV_POISONED", "fence", fault);
  }

  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#closed = true;
    this.lib.fn.rkv_close(this.handle);
  }
}
