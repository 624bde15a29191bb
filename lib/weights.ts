/** Brings a checkpoint's weights onto a device: native code maps the files, nothing passes through JavaScript. */
import type { Weights } from "./decoder.ts";
import type { Arena, Device, LayerWeight, MappedFile } from "./device.ts";
import type { TensorSpan } from "./formats/checkpoint.ts";
import type { LoadedCheckpoint } from "./models/model.ts";
import type { OnProgress } from "./types.ts";

/** Packs all weights into `arena`, layer after layer, at most two layers ahead of the device. `onProgress` counts bytes of the files. */
export async function loadWeights(
  device: Device,
  arena: Arena,
  checkpoint: LoadedCheckpoint,
  options: { signal?: AbortSignal; onProgress?: OnProgress },
): Promise<Weights> {
  const { shape, weights: spans } = checkpoint;
  const files: MappedFile[] = [];
  const total = weightBytes(checkpoint);
  let done = 0;
  try {
    for (const path of checkpoint.files) files.push(device.file(path));
    const pack = (span: TensorSpan, rotated = 0) => {
      done += span.bytes;
      const [rows, cols] = span.shape.length === 1 ? [1, span.shape[0]] : span.shape;
      return arena.weight(files[span.file], { offset: span.offset, type: span.type, rows, cols, rotated });
    };
    const fences: Promise<boolean>[] = [];
    const settle = async (ahead: number) => {
      while (fences.length > ahead) await fences.shift();
      options.signal?.throwIfAborted();
      options.onProgress?.({ stage: "load", done, total, unit: "bytes" });
    };
    // The largest first, of the model and of each layer: while one is packed it is there twice, and the rest not yet.
    const ends = arena.model(pack(spans.embed), pack(spans.outputNorm), spans.output && pack(spans.output), shape.normEps);
    fences.push(arena.fence());
    await settle(0);
    const layers = [];
    for (const [l, layer] of spans.layers.entries()) {
      const { heads: q, kvHeads: k } = shape;
      const rotated: Partial<Record<LayerWeight, number>> = shape.rope.interleaved ? { q, k, qBias: q, kBias: k } : {};
      const packed: Partial<Record<LayerWeight, { handle: number }>> = {};
      const named = Object.entries(layer) as [LayerWeight, TensorSpan | null][];
      for (const [name, span] of named.sort(([, a], [, b]) => (b?.bytes ?? 0) - (a?.bytes ?? 0))) {
        if (span) packed[name] = pack(span, rotated[name]);
      }
      const { heads, kvHeads, headDim } = shape;
      const sizes = { heads, kvHeads, headDim, window: shape.window[l] ?? 0, ropeDim: shape.rope.dim };
      layers.push(arena.layer(packed, sizes, { eps: shape.normEps, scale: 1 / Math.sqrt(headDim), softCap: 0 }));
      fences.push(arena.fence());
      await settle(2);
    }
    const frequencies = arena.tensor("f32", [shape.rope.dim / 2]);
    frequencies.write(Float32Array.from(shape.rope.inverseFrequencies));
    fences.push(arena.fence());
    await settle(0);
    return { ends, layers, frequencies, rotationFactor: shape.rope.attentionFactor };
  } finally {
    for (const file of files) file[Symbol.dispose]();
  }
}

/** Bytes of all weights in their files. */
export function weightBytes({ weights }: LoadedCheckpoint): number {
  const ends = [weights.embed, weights.outputNorm, weights.output];
  const spans = [...ends, ...weights.layers.flatMap((layer) => Object.values(layer) as (TensorSpan | null)[])];
  return spans.reduce((sum, span) => sum + (span?.bytes ?? 0), 0);
}
