/** Single ops on the loaded model's own weights, as shares of the machine's limits. */
import { activations, committed } from "../lib/activations.ts";
import type { LoadedModel } from "../lib/model.ts";
import { Rows, stepState } from "../lib/kv/store.ts";
import type { KvDType } from "../lib/types.ts";
import { kvRowBytes } from "./floors.ts";
import type { Limits } from "./limits.ts";
import { median } from "./numbers.ts";

export interface OpRow {
  readonly op: string;
  readonly what: string;
  readonly ms: number;
  /** 10^9 of `unit` per second. */
  readonly rate: number;
  readonly unit: "GB/s" | "GFLOP/s" | "GOP/s";
  /** Of the limit: bandwidth, BF16, bytes. */
  readonly share: number;
}

const REPEATS = 7;
const CHUNK = 256;

export async function measureOps(
  model: LoadedModel,
  limits: Limits,
  depth: number,
): Promise<OpRow[]> {
  const { shape, device, weights: { layers: [layer], ends } } = model;
  const { layers, hidden, heads, kvHeads, headDim, intermediate, vocab } = shape;
  const k = device.kernels;
  using arena = device.arena(4 * 2 ** 30);
  const state = stepState(arena, 1, 1);
  const a = activations(
    arena,
    model,
    CHUNK,
    heads * (Math.ceil(depth / 256) + 3) * (headDim + 2),
  );
  const [q, attended] = [committed(arena, [1, heads, headDim]), committed(arena, [1, heads, headDim])]; // of a step
  const logits = committed(arena, [1, vocab]);
  a.x.write(
    Float32Array.from({ length: CHUNK * hidden }, (_, i) => Math.sin(i)),
  );
  a.q.write(
    Float32Array.from(
      { length: CHUNK * heads * headDim },
      (_, i) => Math.cos(i),
    ),
  );
  q.write(Float32Array.from({ length: heads * headDim }, (_, i) => Math.cos(i)));
  state.active.write(Int32Array.of(1));

  const time = async (repeats: number, run: () => void): Promise<number> => {
    const times: number[] = [];
    for (let i = 0; i <= REPEATS; i++) {
      const begin = performance.now();
      for (let j = 0; j < repeats; j++) run();
      await arena.fence();
      times.push((performance.now() - begin) / repeats);
    }
    return median(times.slice(1));
  };
  const rows: OpRow[] = [];
  const row = (
    op: string,
    what: string,
    ms: number,
    work: number,
    unit: OpRow["unit"],
    limit: number | undefined,
  ) =>
    rows.push({
      op,
      what,
      ms,
      rate: work / ms / 1e6,
      unit,
      share: work / ms / 1e6 / (limit ?? NaN),
    });

  const read = Math.max(limits.read, limits.read1);
  const { embed, output, layers: [spans] } = model.checkpoint.weights;
  row(
    "head",
    `${embed.type}, 1 row`,
    await time(3, () => k.head(logits, a.x, ends, null, a.work, 0, 1)),
    (output ?? embed).bytes,
    "GB/s",
    read,
  );
  const outBytes = spans.o.bytes + spans.gate.bytes + spans.up.bytes +
    spans.down.bytes;
  // Every layer in turn, so that no weights are still in a cache.
  const everyOut = await time(
    1,
    () => model.weights.layers.forEach((each) => k.attnOut(a.x, a.attended, each, null, a.work, 1)),
  );
  row(
    "attnOut",
    `${spans.o.type}, 1 row`,
    everyOut / layers,
    outBytes,
    "GB/s",
    read,
  );
  const everyFour = await time(
    1,
    () => model.weights.layers.forEach((each) => k.attnOut(a.x, a.attended, each, null, a.work, 4)),
  );
  row(
    "attnOut",
    `${spans.o.type}, 4 rows`,
    everyFour / layers,
    outBytes,
    "GB/s",
    read,
  );
  const isQuantised = spans.o.type.startsWith("q");
  const flops = 2 * CHUNK * hidden * (heads * headDim + 3 * intermediate);
  const chunkMs = await time(
    1,
    () => k.attnOut(a.x, a.attended, layer, null, a.work, CHUNK),
  );
  row(
    "attnOut",
    `${spans.o.type}, ${CHUNK} rows`,
    chunkMs,
    flops,
    isQuantised ? "GOP/s" : "GFLOP/s",
    isQuantised ? limits.bytes : limits.bf16,
  );

  for (const dtype of ["f16", "bf16", "q8"] satisfies KvDType[]) {
    const store = new Rows(arena, 0, {
      layers: 1,
      slots: 1,
      heads,
      kvHeads,
      headDim,
      capacity: depth,
      dtype,
      scale: 0.125,
      budget: 0,
    }, state);
    store.commit(0, depth);
    const put = (end: number) => state.rowEnd.write(Int32Array.of(end));
    const position = arena.tensor("i32", [CHUNK]);
    for (let at = 0; at < depth; at += CHUNK) {
      put(at);
      k.attnIn(
        a.q,
        store.handle,
        a.x,
        layer,
        a.rotations,
        position,
        a.work,
        0,
        Math.min(CHUNK, depth - at),
      );
    }
    const attend = await time(
      3,
      () => k.attend(attended, null, q, store.handle, layer, null, a.work, 0),
    );
    row(
      "attend",
      `${dtype}, ${depth} rows`,
      attend,
      depth * kvRowBytes(model, dtype),
      "GB/s",
      read,
    );
    for (const seen of new Set([Math.min(4096, depth), depth])) {
      put(seen);
      const chunk = await time(
        1,
        () => k.attendChunk(a.attended, null, a.q, store.handle, layer, 0, CHUNK),
      );
      row(
        "attendChunk",
        `${dtype}, ${CHUNK} of ${seen} rows`,
        chunk,
        4 * heads * headDim * CHUNK * (seen - CHUNK / 2),
        "GFLOP/s",
        limits.bf16 ?? limits.f32,
      );
    }
  }
  const handOff = await time(
    2000,
    () => k.advance(state.position, state.active),
  );
  row(
    "advance",
    "nothing to do: the way through the queue",
    handOff,
    0,
    "GB/s",
    undefined,
  );
  return rows;
}
