/** Runs a case on a real device, through lib/ and the FFI. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Arena, Device, MappedFile } from "../../lib/device.ts";
import type { LayerHandle, ModelHandle, RowsHandle } from "../../lib/kernels.ts";
import type { Tensor } from "../../lib/tensor.ts";
import type { Layer, Model, Plain, Rows } from "../reference/plain.ts";
import { type Arg, type Args, type Case, isRows, isTensor } from "./case.ts";
import { encode } from "./codec.ts";
import { judged, type Outcome } from "./judge.ts";
import type { FileWeight } from "./weights.ts";

/** Address space of one case; memory is used only as tensors need it. */
const ROOM = 256 << 20;
const GUARD = 0x5eed5eed;
const GUARD_INTS = 64;

function isLayer(arg: Arg): arg is Layer {
  return arg !== null && typeof arg === "object" && "weights" in arg;
}

function isModel(arg: Arg): arg is Model {
  return arg !== null && typeof arg === "object" && "embed" in arg;
}

/** The weights that a case's layer or model has, in the order they go into its file. */
function weightsOf(args: Args): FileWeight[] {
  return Object.values(args).flatMap((arg) => {
    const held = isLayer(arg) ? Object.values(arg.weights) : isModel(arg) ? [arg.embed, arg.outputNorm, arg.output] : [];
    return held.filter((weight) => weight !== null) as FileWeight[];
  });
}

/** What a case becomes on one arena: a tensor for each plain one with a guard behind it, weights from a file, bundles of both. */
class Upload {
  readonly tensors = new Map<Plain, Tensor>();
  readonly #guards: Tensor[] = [];
  readonly #offsets = new Map<FileWeight, number>();

  constructor(readonly arena: Arena, readonly file: MappedFile | null, weights: readonly FileWeight[]) {
    let offset = 0;
    for (const weight of weights) {
      this.#offsets.set(weight, offset);
      offset += weight.bytes.length;
    }
  }

  arg(arg: Arg): Tensor | LayerHandle | ModelHandle | RowsHandle | Int32Array | number | null {
    if (isTensor(arg)) return this.#tensor(arg);
    if (isRows(arg)) return this.#rows(arg);
    if (isLayer(arg)) return this.#layer(arg);
    if (isModel(arg)) return this.#model(arg);
    return arg;
  }

  /** Nothing may be written past a tensor's end. */
  async guardsHold(): Promise<boolean> {
    const held = await Promise.all(this.#guards.map((guard) => guard.read()));
    return held.every((guard) => guard.every((word) => word === GUARD));
  }

  #tensor(plain: Plain): Tensor {
    const tensor = this.arena.tensor(plain.dtype, plain.shape);
    tensor.commit(plain.shape.at(-2) ?? plain.shape[0]);
    tensor.write(encode(plain));
    this.tensors.set(plain, tensor);
    const guard = this.arena.tensor("i32", [GUARD_INTS]);
    guard.write(new Int32Array(GUARD_INTS).fill(GUARD));
    this.#guards.push(guard);
    return tensor;
  }

  #rows(rows: Rows): RowsHandle {
    const parts = [rows.keys, rows.values, rows.rowPosition, rows.rowEnd, rows.tailBegin, rows.active, rows.attended];
    return this.arena.rows(parts.map((part) => this.#tensor(part)), rows.layer);
  }

  #weight(weight: FileWeight): { readonly handle: number } {
    const { type, rows, cols, rotated } = weight;
    return this.arena.weight(this.file!, { offset: this.#offsets.get(weight)!, type, rows, cols, rotated });
  }

  #layer({ weights, heads, kvHeads, headDim, window, ropeDim, eps, scale, softCap }: Layer): LayerHandle {
    const packed = Object.entries(weights).map(([name, weight]) => [name, this.#weight(weight as FileWeight)]);
    return this.arena.layer(Object.fromEntries(packed), { heads, kvHeads, headDim, window, ropeDim }, { eps, scale, softCap });
  }

  #model({ embed, outputNorm, output, eps }: Model): ModelHandle {
    const [table, norm] = [this.#weight(embed as FileWeight), this.#weight(outputNorm as FileWeight)];
    return this.arena.model(table, norm, output && this.#weight(output as FileWeight), eps);
  }
}

/** Arguments as they are on a device, and what became of them after `enqueue`. */
export async function onDevice(device: Device, args: Args, enqueue: (args: unknown[], upload: Upload) => void): Promise<Outcome> {
  const weights = weightsOf(args);
  const folder = weights.length > 0 ? await mkdtemp(join(tmpdir(), "recallkv-")) : null;
  const arena = device.arena(ROOM);
  try {
    if (folder) await writeFile(join(folder, "weights"), new Uint8Array(await new Blob(weights.map(({ bytes }) => bytes)).arrayBuffer()));
    const file = folder ? device.file(join(folder, "weights")) : null;
    const upload = new Upload(arena, file, weights);
    const uploaded = Object.values(args).map((arg) => upload.arg(arg));
    file?.[Symbol.dispose](); // the packing that was enqueued still has it
    enqueue(uploaded, upload);
    const outcome = new Map<string, Uint8Array<ArrayBuffer>>();
    for (const { name, tensor } of judged(args)) {
      const data = await upload.tensors.get(tensor)!.read();
      outcome.set(name, new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength).slice());
    }
    if (!await upload.guardsHold()) throw new Error("A guard behind a tensor was overwritten");
    return outcome;
  } finally {
    arena[Symbol.dispose]();
    if (folder) await rm(folder, { recursive: true });
  }
}

/** Runs a case on a device. */
export function runCase(device: Device, one: Case): Promise<Outcome> {
  const op = device.kernels[one.op] as (...args: unknown[]) => void;
  return onDevice(device, one.make(), (args) => op.apply(device.kernels, args));
}
