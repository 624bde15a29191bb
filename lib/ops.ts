/**
 * recallkv/kernels: the ops alone, for arrays of one's own: cluster anything, score it, choose from it, gather it, attend it.
 *
 * ```ts
 * import { kmeans, open } from "recallkv/kernels";
 * using device = await open("cpu");
 * const vectors = device.from(Float32Array.of(0, 1, 0, 2, 3, 0, 4, 0), [1, 1, 4, 2]);
 * const { labels, centroids } = kmeans(device, vectors, { clusters: 2 });
 * console.log(await labels.read(), await centroids.read()); // [0, 0, 1, 1], [0, 1.5, 3.5, 0]
 * ```
 *
 * Calls enqueue and return at once; `read` waits. Shapes are row-major with the words of the library: slots (independent problems), kvHeads
 * (independent planes of one problem), rows, headDim (width of a vector). Errors say the action, what was found and what was wanted: TypeError
 * for a wrong kind or dtype, RangeError for a number out of range and for shapes that do not fit each other, RecallError `RKV_MEMORY`.
 */
import { assignWork, kmeans as clusterRows } from "./cluster/kmeans.ts";
import { type Arena, type Device, open as openDevice, type OpenOptions } from "./device.ts";
import type { Kernels } from "./kernels.ts";
import { numberIn, shown } from "./options.ts";
import { rowBytes, type Tensor } from "./tensor.ts";
import type { DataOf, DType } from "./types.ts";

export { RecallError } from "./errors.ts";
export type { OpenOptions } from "./device.ts";
export type { DataOf, DType } from "./types.ts";

/** Opens a device: "cpu", "cuda", or "auto" (CUDA where it can be had, else the CPU). Errors: RecallError `RKV_DEVICE`. */
export async function open(kind: "auto" | "cpu" | "cuda" = "auto", options: OpenOptions = {}): Promise<OpsDevice> {
  return new OpsDevice(await openDevice(kind, options));
}

/** An array on a device. */
export class DeviceArray<D extends DType = DType> {
  /** Made by the device and its ops. */
  constructor(readonly device: OpsDevice, readonly tensor: Tensor, private readonly arena: Arena) {}

  /** Extents, row-major. */
  get shape(): readonly number[] {
    return this.tensor.shape;
  }

  /** dtype of the numbers. */
  get dtype(): D {
    return this.tensor.dtype as D;
  }

  /** Waits for all work before, then copies the numbers to the host; 16-bit floats come as their bits. */
  read(): Promise<DataOf[D]> {
    return this.tensor.read() as Promise<DataOf[D]>;
  }

  /** Gives its memory back, once all work that was enqueued before has ended. */
  [Symbol.dispose](): void {
    this.device.forget(this.arena);
  }
}

/** A device, and the arrays on it. */
export class OpsDevice {
  readonly #arenas = new Set<Arena>();

  /** Made by `open`. */
  constructor(private readonly device: Device) {}

  /** Where it computes. */
  get kind(): "cpu" | "cuda" {
    return this.device.kind;
  }

  /** One line: "cpu avx512bf16, 2 threads". */
  get description(): string {
    return this.device.description;
  }

  /** The ops as the library has them. */
  get kernels(): Kernels {
    return this.device.kernels;
  }

  /**
   * Copies numbers to the device. Float32Array is f32, Int32Array i32; a Uint16Array holds the bits of f16 or bf16, as `dtype` says.
   * Errors: TypeError for another kind; RangeError where data and shape differ in length.
   */
  from(data: Float32Array, shape: readonly number[]): DeviceArray<"f32">;
  /** The same for other kinds of numbers. */
  from(data: Int32Array, shape: readonly number[]): DeviceArray<"i32">;
  /** The same for other kinds of numbers. */
  from<D extends "f16" | "bf16">(data: Uint16Array, shape: readonly number[], dtype: D): DeviceArray<D>;
  from(data: Float32Array | Int32Array | Uint16Array, shape: readonly number[], dtype?: DType): DeviceArray {
    const found = data instanceof Float32Array
      ? "f32"
      : data instanceof Int32Array
      ? "i32"
      : data instanceof Uint16Array
      ? dtype
      : undefined;
    if (found === undefined || (data instanceof Uint16Array && found !== "f16" && found !== "bf16")) {
      throw new TypeError(
        `Cannot copy to the device: data is ${shown(data)} with dtype ${
          shown(dtype)
        }, want a Float32Array, an Int32Array, or a Uint16Array with dtype "f16" or "bf16"`,
      );
    }
    const elements = shape.reduce(
      (product, extent) => product * numberIn("copy to the device", "an extent of shape", extent, 0, 2 ** 31 - 1, true),
      1,
    );
    if (elements !== data.length) {
      throw new RangeError(`Cannot copy to the device: data has ${data.length} numbers but shape [${shape.join(", ")}] has ${elements}`);
    }
    const array = this.array(found, shape);
    if (elements > 0) array.tensor.write(data);
    return array;
  }

  /** An array of zeros. */
  array<D extends DType>(dtype: D, shape: readonly number[]): DeviceArray<D> {
    const arena = this.#arena(bytesOf(dtype, shape));
    return new DeviceArray<D>(this, committed(arena, dtype, shape), arena);
  }

  /**
   * Runs `work` with room that is given back when what it has enqueued has ended.
   * @internal
   */
  scratch<T>(bytes: number, work: (arena: Arena) => T): T {
    const arena = this.#arena(bytes);
    try {
      return work(arena);
    } finally {
      this.forget(arena);
    }
  }

  /**
   * Gives an arena back.
   * @internal
   */
  forget(arena: Arena): void {
    if (this.#arenas.delete(arena)) arena[Symbol.dispose]();
  }

  #arena(bytes: number): Arena {
    const arena = this.device.arena(bytes + (1 << 20));
    this.#arenas.add(arena);
    return arena;
  }

  /** Gives everything back. Nothing of it may be used afterwards. */
  [Symbol.dispose](): void {
    for (const arena of [...this.#arenas]) this.forget(arena);
    this.device[Symbol.dispose]();
  }
}

/** How many clusters, and how long to look for them. */
export interface KmeansOptions {
  /** How many, from 1 to the number of rows. */
  clusters: number;
  /** Most rounds; 20 unless said. It ends earlier when no label changes. */
  iterations?: number;
}

/** Clusters. */
export interface KmeansResult {
  /** f32[slots, kvHeads, clusters, headDim]: means of the members. */
  readonly centroids: DeviceArray<"f32">;
  /** i32[slots, kvHeads, rows]: the cluster of each row. */
  readonly labels: DeviceArray<"i32">;
  /** i32[slots, kvHeads, rows]: rows by cluster; those of cluster c are order[offsets[c] .. offsets[c + 1]), in their own order. */
  readonly order: DeviceArray<"i32">;
  /** i32[slots, kvHeads, clusters + 1]. */
  readonly offsets: DeviceArray<"i32">;
}

/**
 * Clusters the rows of each plane. keys[slots, kvHeads, rows, headDim]: f32, f16 or bf16.
 *
 * Centroids begin at evenly spaced rows; label = argmax_c key . centroid_c / |centroid_c|, ties to the lower id; centroid = raw mean of its
 * members; an empty cluster keeps its centroid. Deterministic. Source: ClusterKV (arXiv 2412.03213) 3.2. Errors: RangeError for `clusters`
 * or `iterations`; RangeError for shapes, TypeError for dtypes, RecallError `RKV_MEMORY`.
 */
export function kmeans(device: OpsDevice, keys: DeviceArray, { clusters, iterations = 20 }: KmeansOptions): KmeansResult {
  const [slots, kvHeads, rows, headDim] = shapeOf("cluster", "keys", keys, ["slots", "kvHeads", "rows", "headDim"]);
  numberIn("cluster", "clusters", clusters, 1, rows, true);
  numberIn("cluster", "iterations", iterations, 1, 10_000, true);
  const made = {
    centroids: device.array("f32", [slots, kvHeads, clusters, headDim]),
    labels: device.array("i32", [slots, kvHeads, rows]),
    order: device.array("i32", [slots, kvHeads, rows]),
    offsets: device.array("i32", [slots, kvHeads, clusters + 1]),
  };
  const tensors = { keys: keys.tensor, centroids: made.centroids.tensor, labels: made.labels.tensor, order: made.order.tensor };
  const work = assignWork(kvHeads, rows, clusters);
  device.scratch(4 * (work + slots * kvHeads), (arena) => {
    const room = { moved: arena.tensor("i32", [slots, kvHeads]), work: committed(arena, "f32", [work]), offsets: made.offsets.tensor };
    for (let slot = 0; slot < slots; slot++) {
      clusterRows(device.kernels, { ...tensors, ...room }, Int32Array.of(slot, 0, rows, 0, clusters), iterations);
    }
  });
  return made;
}

/**
 * The nearest centroid of each row, by cosine, ties to the lower id: i32[slots, kvHeads, rows].
 * keys[slots, kvHeads, rows, headDim] f32, f16 or bf16; centroids[slots, kvHeads, clusters, headDim] f32.
 * label = argmax_c key . centroid_c / |centroid_c| (a centroid of zeros counts as cosine 0). Source: ClusterKV 3.2. Errors: RangeError for
 * shapes, TypeError for dtypes.
 */
export function assign(device: OpsDevice, keys: DeviceArray, centroids: DeviceArray): DeviceArray<"i32"> {
  const [slots, kvHeads, rows] = shapeOf("assign", "keys", keys, ["slots", "kvHeads", "rows", "headDim"]);
  const [, , clusters] = shapeOf("assign", "centroids", centroids, ["slots", "kvHeads", "clusters", "headDim"]);
  const labels = device.array("i32", [slots, kvHeads, rows]);
  const work = assignWork(kvHeads, rows, clusters);
  device.scratch(4 * (work + slots * kvHeads), (arena) => {
    const [moved, room] = [arena.tensor("i32", [slots, kvHeads]), committed(arena, "f32", [work])];
    moved.write(new Int32Array(slots * kvHeads).fill(1));
    for (let slot = 0; slot < slots; slot++) {
      device.kernels.assign(labels.tensor, moved, keys.tensor, centroids.tensor, room, Int32Array.of(slot, 0, rows, 0, clusters));
    }
  });
  return labels;
}

/** How to score. */
export interface ScoreOptions {
  /** i32[slots, kvHeads, clusters + 1] of kmeans: clusters without members then score -Infinity. */
  offsets?: DeviceArray;
  /** f32[slots, kvHeads, clusters]: how far each cluster reaches; with `bound`. */
  radius?: DeviceArray;
  /** How much of the radius counts; 0 unless said. */
  bound?: number;
  /** Multiplies logits; 1 / sqrt(headDim) unless said. */
  scale?: number;
  /** Logits for every query head instead of sums for every KV head. */
  perHead?: boolean;
}

/**
 * How much attention each cluster would draw: f32[slots, kvHeads, clusters] (perHead: [slots, heads, clusters]).
 * q[slots, heads, headDim] f32, heads a multiple of kvHeads; centroids[slots, kvHeads, clusters, headDim] f32.
 * u = q . centroid + bound |q| radius; score = sum over the heads of a KV head of softmax_c(scale u); perHead: u.
 * Source: ClusterKV 3.3; RetroInfer (arXiv 2505.02922) 4.2. Errors: RangeError for `scale`, `bound`; RangeError for shapes, TypeError for dtypes.
 */
export function centroidScores(device: OpsDevice, q: DeviceArray, centroids: DeviceArray, options: ScoreOptions = {}): DeviceArray<"f32"> {
  const [slots, heads, headDim] = shapeOf("score centroids", "q", q, ["slots", "heads", "headDim"]);
  const [, kvHeads, clusters] = shapeOf("score centroids", "centroids", centroids, ["slots", "kvHeads", "clusters", "headDim"]);
  const { offsets, radius, bound = 0, scale = 1 / Math.sqrt(headDim), perHead = false } = options;
  numberIn("score centroids", "scale", scale, -1e6, 1e6);
  numberIn("score centroids", "bound", bound, -1e6, 1e6);
  const scores = device.array("f32", [slots, perHead ? heads : kvHeads, clusters]);
  const ends = slots * kvHeads * (clusters + 1);
  device.scratch(4 * (ends + 2 * slots), (arena) => {
    const [count, active] = [arena.tensor("i32", [slots]), activeOf(arena, slots)];
    count.write(new Int32Array(slots).fill(clusters));
    const own = offsets?.tensor ?? committed(arena, "i32", [slots, kvHeads, clusters + 1]);
    if (!offsets) own.write(Int32Array.from({ length: ends }, (_, i) => i % (clusters + 1)));
    device.kernels.centroidScores(scores.tensor, q.tensor, centroids.tensor, radius?.tensor ?? null, own, count, active, scale, bound);
  });
  return scores;
}

/**
 * The k best of each plane: i32[slots, n, k], ids by descending score, ties to the lower id; NaN and -Infinity are left out, then -1.
 * scores[slots, n, width] f32. Errors: RangeError for `k`; RangeError for shapes, TypeError for dtypes.
 */
export function topk(device: OpsDevice, scores: DeviceArray, k: number): DeviceArray<"i32"> {
  const [slots, planes, width] = shapeOf("rank", "scores", scores, ["slots", "n", "width"]);
  numberIn("rank", "k", k, 1, width, true);
  const order = device.array("i32", [slots, planes, k]);
  device.scratch(4 * slots, (arena) => device.kernels.topk(order.tensor, scores.tensor, activeOf(arena, slots)));
  return order;
}

/**
 * Rows of the best clusters until `budget` are chosen, the last cluster trimmed: i32[slots, n, budget], then -1.
 * order[slots, n, k] i32: cluster ids, best first, then -1; offsets[slots, kvHeads, clusters + 1] i32: cluster c is rows
 * [offsets[c], offsets[c + 1]) of an array in cluster order. Source: ClusterKV 3.3. Errors: RangeError for `budget`; RecallError.
 */
export function fillBudget(device: OpsDevice, order: DeviceArray, offsets: DeviceArray, budget: number): DeviceArray<"i32"> {
  const [slots, planes] = shapeOf("fill the budget", "order", order, ["slots", "n", "k"]);
  numberIn("fill the budget", "budget", budget, 1, 2 ** 24, true);
  const index = device.array("i32", [slots, planes, budget]);
  device.scratch(4 * slots, (arena) => device.kernels.fillBudget(index.tensor, order.tensor, offsets.tensor, activeOf(arena, slots)));
  return index;
}

/**
 * Chosen rows together: f32[slots, kvHeads, budget, width]; those of -1 are zeros. from[slots, kvHeads, rows, width] f32, f16 or bf16;
 * index[slots, kvHeads, budget] i32. Errors: RangeError for shapes, TypeError for dtypes.
 */
export function gatherRows(device: OpsDevice, from: DeviceArray, index: DeviceArray): DeviceArray<"f32"> {
  const [slots, kvHeads, , width] = shapeOf("gather rows", "from", from, ["slots", "kvHeads", "rows", "width"]);
  const [, , budget] = shapeOf("gather rows", "index", index, ["slots", "kvHeads", "budget"]);
  const to = device.array("f32", [slots, kvHeads, budget, width]);
  device.kernels.gatherRows(to.tensor, from.tensor, index.tensor);
  return to;
}

/** Which rows to attend. */
export interface AttendOptions {
  /** i32[slots, kvHeads or heads, budget]: rows to read beside sink and tail, then -1. Without it every row is read. */
  index?: DeviceArray;
  /** First rows that are always read; 0 unless said. With `index`, which must not name them. */
  sink?: number;
  /** Last rows that are always read; 0 unless said. With `index`, which must not name them. */
  tail?: number;
  /** Multiplies logits; 1 / sqrt(headDim) unless said. */
  scale?: number;
}

/** What attention gave. */
export interface AttendResult {
  /** f32[slots, heads, headDim]. */
  readonly attended: DeviceArray<"f32">;
  /** f32[slots, heads]: log-sum-exp of the logits that were read. */
  readonly lse: DeviceArray<"f32">;
}

/**
 * Attention of one query per head over rows: all of them, or sink, `index` and tail.
 * q[slots, heads, headDim] f32; keys and values[slots, kvHeads, rows, headDim] f32, f16 or bf16, heads a multiple of kvHeads.
 * attended = sum_j softmax_j(scale q . k_j) v_j over the rows that are read. Keys and values are copied once for the call.
 * Errors: RangeError for sink, tail, scale; RangeError for shapes, TypeError for dtypes, RecallError `RKV_MEMORY`.
 */
export function attend(
  device: OpsDevice,
  q: DeviceArray,
  keys: DeviceArray,
  values: DeviceArray,
  options: AttendOptions = {},
): AttendResult {
  const [slots, heads, headDim] = shapeOf("attend", "q", q, ["slots", "heads", "headDim"]);
  const [, kvHeads, rows] = shapeOf("attend", "keys", keys, ["slots", "kvHeads", "rows", "headDim"]);
  const { index, sink = 0, tail = 0, scale = 1 / Math.sqrt(headDim) } = options;
  if (heads % kvHeads !== 0) throw new RangeError(`Cannot attend: q has ${heads} heads but keys have ${kvHeads}, want a multiple of that`);
  numberIn("attend", "sink", sink, 0, rows, true);
  numberIn("attend", "tail", tail, 0, rows - sink, true);
  numberIn("attend", "scale", scale, -1e6, 1e6);
  const made = { attended: device.array("f32", [slots, heads, headDim]), lse: device.array("f32", [slots, heads]) };
  const floats = slots * heads * (Math.ceil(rows / 256) + 2) * (headDim + 2);
  const room = 4 * floats + bytesOf(keys.dtype, keys.shape) + bytesOf(values.dtype, values.shape) + 4 * slots * kvHeads * rows;
  device.scratch(room + (1 << 16) * 8, (arena) => {
    const k = device.kernels;
    const copies = [keys, values].map(({ tensor, dtype, shape }) => {
      const copy = committed(arena, dtype, shape);
      k.copy(copy, 0, tensor, 0, tensor.elements / headDim);
      return copy;
    });
    const [ends, tails] = [arena.tensor("i32", [1, slots]), arena.tensor("i32", [1, slots])];
    ends.write(new Int32Array(slots).fill(rows));
    tails.write(new Int32Array(slots).fill(index ? rows - tail : 0));
    const parts = [...copies, committed(arena, "i32", [slots, kvHeads, rows]), ends, tails, activeOf(arena, slots)];
    const bundle = arena.rows([...parts, arena.tensor("i32", [1, slots, 8])], 0);
    const layer = arena.layer({}, { heads, kvHeads, headDim, window: 0, ropeDim: 0 }, { eps: 0, scale, softCap: 0 });
    k.attend(
      made.attended.tensor,
      made.lse.tensor,
      q.tensor,
      bundle,
      layer,
      index?.tensor ?? null,
      committed(arena, "f32", [floats]),
      sink,
    );
  });
  return made;
}

function activeOf(arena: Arena, slots: number): Tensor {
  const active = arena.tensor("i32", [slots]);
  active.write(new Int32Array(slots).fill(1));
  return active;
}

function bytesOf(dtype: DType, shape: readonly number[]): number {
  const width = shape.at(-1) ?? 1;
  return width === 0 ? 0 : (shape.reduce((product, extent) => product * extent, 1) / width) * rowBytes(dtype, width);
}

function committed(arena: Arena, dtype: DType, shape: readonly number[]): Tensor {
  const tensor = arena.tensor(dtype, shape);
  tensor.commit(shape.at(-2) ?? 1);
  return tensor;
}

/** Extents of an array of the wanted rank. */
function shapeOf(action: string, name: string, array: DeviceArray, wanted: readonly string[]): readonly number[] {
  if (!(array instanceof DeviceArray)) {
    throw new TypeError(`Cannot ${action}: ${name} is ${shown(array)}, want an array of the device (device.from)`);
  }
  if (array.shape.length === wanted.length) return array.shape;
  throw new RangeError(`Cannot ${action}: ${name} is [${array.shape.join(", ")}], want [${wanted.join(", ")}]`);
}
