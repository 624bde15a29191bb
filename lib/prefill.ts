/**
 * Reading a prompt: for block, for layer, for chunk of the block. A block is one chunk, unless the policy must see a layer finished
 * before the next begins: then it is the whole prompt, whose hidden states wait in between.
 */
import { type Activations, chunkLayer, type SessionLayer } from "./decoder.ts";
import type { Arena } from "./device.ts";
import type { Kernels } from "./kernels.ts";
import type { RowKeeper } from "./kv/keeper.ts";
import type { SlotState } from "./kv/slot.ts";
import type { LoadedModel } from "./model.ts";
import type { Kept } from "./policies/policy.ts";
import type { Tensor } from "./tensor.ts";
import type { OnProgress } from "./types.ts";

export interface Prompt {
  readonly slot: number;
  readonly held: SlotState;
  readonly tokens: readonly number[];
  readonly onProgress?: OnProgress;
  /** Called between blocks, with nothing of this prompt left on the device. */
  readonly between?: () => Promise<void>;
}

export class Prefill {
  readonly #token: Tensor;
  readonly #position: Tensor;
  /** Of a whole prompt: f32[capacity, hidden] and i32[capacity]. */
  readonly #hidden: Tensor | undefined;
  readonly #places: Tensor | undefined;

  constructor(
    private readonly arena: Arena,
    private readonly k: Kernels,
    private readonly model: LoadedModel,
    private readonly layers: readonly SessionLayer[],
    private readonly keeper: RowKeeper,
    private readonly block: Activations,
    private readonly chunk: number,
    whole: { capacity: number } | null,
  ) {
    this.#token = arena.tensor("i32", [chunk]);
    this.#position = arena.tensor("i32", [chunk]);
    if (!whole) return;
    this.#hidden = arena.tensor("f32", [whole.capacity, model.shape.hidden]);
    this.#places = arena.tensor("i32", [whole.capacity]);
    this.#places.commit(whole.capacity);
  }

  /** Enqueues a prompt, at most two chunks ahead of the device, and leaves its last hidden state in row `last` of the block. */
  async read(prompt: Prompt): Promise<{ last: number; finished: boolean }> {
    const { slot, held, tokens } = prompt;
    const before = held.layers.map(({ end }) => end);
    const pace = new Pace(this.arena, prompt, this.#hidden ? tokens.length * this.layers.length : tokens.length);
    const last = this.#hidden ? await this.#wholePrompt(prompt, pace, this.#hidden, this.#places!) : await this.#chunks(prompt, pace);
    if (pace.stopped) return { last, finished: false };
    held.prompt = held.tokens.length;
    if (!this.#hidden) this.layers.forEach((_, l) => this.keeper.giveBack(slot, held, l, "prompt", before[l], tokens.length));
    this.keeper.build(slot, held, true);
    return { last, finished: await pace.finish() };
  }

  async #chunks({ slot, held, tokens, between }: Prompt, pace: Pace): Promise<number> {
    const { k, block } = this;
    const begin = held.tokens.length;
    let last = 0;
    for (const { from, count } of pieces(tokens.length, this.chunk)) {
      this.#embed(tokens, from, count, held.tokens.length);
      const chunk = { slot, count, from, rest: tokens.length - from - count, begin, prompt: tokens.length, position: this.#position };
      for (const [l, layer] of this.layers.entries()) {
        chunkLayer(k, layer, block, chunk);
        held.layers[l].end += count;
        this.keeper.build(slot, held, false, l); // at once: a GPU builds beside the layers that follow
        if (chunk.rest === 0 && !this.keeper.givesBack(l)) this.keeper.build(slot, held, true, l);
      }
      for (let i = from; i < from + count; i++) held.tokens.push(tokens[i]);
      last = count - 1;
      if (!(await pace.advance(count))) break;
      if (!between || from + count === tokens.length) continue;
      if (!(await pace.settle())) break;
      await between();
    }
    return last;
  }

  async #wholePrompt({ slot, held, tokens }: Prompt, pace: Pace, hidden: Tensor, places: Tensor): Promise<number> {
    const { k, block, model: { weights } } = this;
    const begin = held.tokens.length;
    hidden.commit(tokens.length);
    for (const { from, count } of pieces(tokens.length, this.chunk)) {
      this.#embed(tokens, from, count, begin + from);
      k.copy(hidden, from, block.x, 0, count);
      k.copy(places, from, this.#position, 0, count);
    }
    let rows = tokens.length;
    let last = 0;
    for (const [l, layer] of this.layers.entries()) {
      const before = held.layers[l].end;
      this.keeper.commit(slot, held, rows, l);
      for (const { from, count } of pieces(rows, this.chunk)) {
        k.copy(block.x, 0, hidden, from, count);
        k.copy(this.#position, 0, places, from, count);
        k.rotations(block.rotations, this.#position, weights.frequencies, weights.rotationFactor, count);
        chunkLayer(k, layer, block, {
          slot,
          count,
          from,
          rest: rows - from - count,
          begin: before,
          prompt: tokens.length,
          position: this.#position,
        });
        k.copy(hidden, from, block.x, 0, count);
        last = count - 1;
        held.layers[l].end += count;
        if (!(await pace.advance(count))) return last;
      }
      const kept = this.keeper.giveBack(slot, held, l, "prompt", before, tokens.length);
      if (kept?.of === "deeper") rows = this.#drop(kept, slot, before, rows, hidden, places);
    }
    for (const token of tokens) held.tokens.push(token);
    hidden.release(0, 0);
    return last;
  }

  /** Drops hidden states of tokens that a layer gave up; returns how many are left. */
  #drop({ keep, count }: Kept, slot: number, before: number, rows: number, hidden: Tensor, places: Tensor): number {
    if (before > 0) throw new RangeError(`Cannot drop hidden states: the prompt begins at row ${before}, want 0`);
    if (count > rows) throw new RangeError(`Cannot drop hidden states: ${count} rows are kept, want at most ${rows}`);
    this.k.pickRows(hidden, keep, slot, count);
    this.k.pickRows(places, keep, slot, count);
    return count;
  }

  #embed(tokens: readonly number[], from: number, count: number, position: number): void {
    const { k, block, model: { weights } } = this;
    this.#token.write(Int32Array.from(tokens.slice(from, from + count)));
    this.#position.write(Int32Array.from({ length: count }, (_, i) => position + i));
    k.rotations(block.rotations, this.#position, weights.frequencies, weights.rotationFactor, count);
    k.embed(block.x, weights.ends, this.#token, null, count);
  }
}

/** Cuts rows into chunks. The short one comes first, so that all others share one shape. */
function* pieces(rows: number, chunk: number): Generator<{ from: number; count: number }> {
  for (let from = 0, count = rows % chunk || chunk; from < rows; from += count, count = chunk) yield { from, count };
}

/** Keeps the host at most two chunks ahead of the device, and tells how far the device is. */
class Pace {
  #previous: Promise<boolean> = Promise.resolve(true);
  #fence: Promise<boolean> = Promise.resolve(true);
  #enqueued = 0;
  stopped = false;

  /** `total`: chunk rows over all blocks; a prompt's tokens are a share of them. */
  constructor(private readonly arena: Arena, private readonly prompt: Prompt, private readonly total: number) {}

  /** A chunk was enqueued. False when the device was told to stop. */
  async advance(count: number): Promise<boolean> {
    this.#fence = this.arena.fence();
    this.#fence.catch(() => {}); // awaited in the next call, or by finish
    const done = this.#enqueued;
    this.#enqueued += count;
    this.stopped = !(await this.#previous);
    if (this.stopped) return false;
    this.#report(done);
    this.#previous = this.#fence;
    return true;
  }

  /** Waits for all that was enqueued. False when the device was told to stop. */
  async settle(): Promise<boolean> {
    this.stopped = !(await this.#previous && await this.#fence);
    return !this.stopped;
  }

  async finish(): Promise<boolean> {
    const finished = await this.#previous && await this.#fence && await this.arena.fence();
    if (finished) this.#report(this.total);
    return finished;
  }

  #report(done: number): void {
    const { tokens, onProgress } = this.prompt;
    onProgress?.({ stage: "prefill", done: Math.floor((done / this.total) * tokens.length), total: tokens.length, unit: "tokens" });
  }
}
