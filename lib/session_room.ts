/** What a session has on the device, and what the host knows of it: rows and state of every layer, room to work in, the recorded step. */
import { activations, committed, everyRotation } from "./activations.ts";
import { type Activations, type SessionLayer, step } from "./decoder.ts";
import type { Arena, Device } from "./device.ts";
import { RecallError } from "./errors.ts";
import { count } from "./format.ts";
import { SessionAllocator } from "./kv/allocator.ts";
import { type RowRun, rowRuns } from "./kv/mark.ts";
import { RowKeeper } from "./kv/keeper.ts";
import { cloneSlot, emptySlot, type SlotState, tailBegin } from "./kv/slot.ts";
import { copyRows, reservedBytes, Rows, type RowsShape, type StepState, stepState } from "./kv/store.ts";
import type { LoadedModel } from "./model.ts";
import { full } from "./policies/full.ts";
import { everyRow, type Policy, policyVersion, resolveBudget } from "./policies/policy.ts";
import { Prefill } from "./prefill.ts";
import { Recording } from "./recording.ts";
import { Sampler } from "./sampling.ts";
import type { Saveable } from "./save.ts";
import type { Attended, SessionOptions } from "./session_options.ts";
import type { Tensor } from "./tensor.ts";
import type { KvDType } from "./types.ts";

export class SessionRoom implements Saveable {
  readonly slots: number;
  readonly capacity: number;
  readonly chunk: number;
  readonly kvDtype: KvDType;
  readonly policy: Policy;
  readonly budget: number;
  readonly device: Device;
  readonly arena: Arena;
  readonly layers: SessionLayer[] = [];
  readonly memory: SessionAllocator;
  readonly state: StepState;
  readonly step: Activations;
  readonly block: Activations;
  readonly logits: Tensor;
  readonly keeper: RowKeeper;
  readonly prefill: Prefill;
  readonly sampler: Sampler;
  /** A step with its choice, and one that ends at the logits. */
  readonly chosen: Recording;
  readonly toLogits: Recording;
  /** What each slot holds, and how many steps it has made. */
  readonly held: SlotState[];
  readonly steps: number[];
  /** What `state.active` holds. */
  active: Int32Array;

  constructor(readonly model: LoadedModel, options: SessionOptions) {
    const { shape, device } = model;
    const { kv = full(), slots = 1, chunk = 256, eager = false } = options;
    const capacity = options.capacity ?? Math.min(shape.trainedContext, 8192);
    whole("slots", slots, 1, 64);
    whole("capacity", capacity, 1, 1 << 24);
    whole("chunk", chunk, 1, 4096);
    if (capacity > shape.trainedContext) {
      options.onWarning?.(`capacity of ${count(capacity)} is past the model's trained context of ${count(shape.trainedContext)} tokens`);
    }
    if (kv.version !== undefined && kv.version !== policyVersion) {
      throw new RangeError(`Cannot use policy ${kv.name}: it was written for policy version ${kv.version}, want ${policyVersion}`);
    }
    this.slots = slots;
    this.capacity = capacity;
    this.chunk = Math.min(chunk, capacity);
    this.policy = kv;
    this.kvDtype = options.kvDtype ?? (device.kind === "cuda" ? "bf16" : "f16");
    this.budget = resolveBudget(kv.budget ?? 0, capacity);
    this.device = device;

    const { heads, kvHeads, headDim, layers } = shape;
    const rowsShape: RowsShape = {
      layers,
      slots,
      heads,
      kvHeads,
      headDim,
      capacity,
      dtype: this.kvDtype,
      scale: 1 / Math.sqrt(headDim),
      budget: this.budget,
    };
    const rowBytes = layers * reservedBytes(rowsShape);
    using building = new DisposableStack(); // gives the arena back when something does not fit
    this.arena = building.use(device.arena(4 * rowBytes + 16 * slots * shape.vocab + 4 * capacity * shape.hidden + (1 << 30)));
    const arena = this.arena;
    this.state = stepState(arena, layers, slots);
    this.memory = new SessionAllocator(arena, slots, () => everyRotation(arena, model, capacity));
    for (let layer = 0; layer < layers; layer++) {
      const rows = new Rows(arena, layer, rowsShape, this.state);
      this.memory.nextLayer(rows);
      const policy = shape.window[layer] === null ? kv.layer(rows, this.memory) : everyRow;
      this.layers.push({ rows, weights: model.weights.layers[layer], policy, sink: policy === everyRow ? 0 : kv.sink });
    }
    const pieces = Math.ceil(capacity / 256) + 2;
    this.step = activations(arena, model, slots, slots * heads * pieces * (headDim + 2));
    this.block = activations(arena, model, this.chunk, 0);
    this.logits = committed(arena, [slots, shape.vocab]);
    this.held = Array.from({ length: slots }, () => emptySlot(layers));
    this.steps = new Array<number>(slots).fill(0);
    this.active = new Int32Array(slots);
    this.keeper = new RowKeeper(device.kernels, this.layers, this.state);
    this.held.forEach((held, slot) => this.keeper.write(slot, held));
    this.prefill = new Prefill(
      arena,
      device.kernels,
      model,
      this.layers,
      this.keeper,
      this.block,
      this.chunk,
      kv.block === "prompt" ? { capacity } : null,
    );
    const sampler = this.sampler = new Sampler(arena, slots, shape.vocab);
    const toLogits = () => {
      sampler.tally(device.kernels, this.state.token, this.state.active);
      step(device.kernels, model.weights, this.layers, this.state, this.step, this.logits, slots);
    };
    const chosen = () => {
      toLogits();
      this.choose(this.state.active, 0, slots);
    };
    this.chosen = new Recording(arena, chosen, eager);
    this.toLogits = new Recording(arena, toLogits, eager);
    building.move();
  }

  /** Enqueues the choice of rows [first, first + count) from their logits. */
  choose(active: Tensor | null, first: number, count: number): void {
    const { token, logprob, position } = this.state;
    this.sampler.choose(this.device.kernels, { token, logprob, logits: this.logits, position }, active, first, count);
  }

  /** Errors: RangeError for a token that is not in the vocabulary, and past the capacity. */
  checkTokens(tokens: readonly number[], length: number): void {
    const { vocab } = this.model.shape;
    const unknown = tokens.find((token) => !Number.isInteger(token) || token < 0 || token >= vocab);
    if (unknown !== undefined) {
      throw new RangeError(`Cannot prefill: token ${unknown} is not in the vocabulary, want 0 to ${count(vocab - 1)}`);
    }
    if (length > this.capacity) this.refuseLength(length);
  }

  refuseLength(length: number): never {
    throw new RangeError(`Cannot hold ${count(length)} tokens: the session's capacity is ${count(this.capacity)} (pass a larger capacity)`);
  }

  /** State of a slot that a mark copies, beside the unbuilt rows. */
  get marked(): Tensor[] {
    return [this.state.position, this.state.token, this.state.logprob, this.logits, ...this.memory.state];
  }

  /** Whether rows stay where they were read. */
  get leavesRows(): boolean {
    return this.layers.every(({ policy }) => policy === everyRow || !(policy.build || policy.giveBack || policy.rowsAfterStep));
  }

  /** Whether a slot may be cut anywhere in what it read as a prompt: the policy keeps nothing but rows, and keeps them in place. */
  get canCut(): boolean {
    return this.leavesRows && this.memory.state.length === 0;
  }

  /** Enqueues a copy of what a slot of another room holds, and what the policy makes of it at the end of a prompt. */
  adopt(slot: number, source: SessionRoom, from: number): void {
    const k = this.device.kernels;
    const held = this.held[slot] = cloneSlot(source.held[from]);
    this.sampler.changed(slot);
    this.keeper.commit(slot, held, 0);
    this.layers.forEach(({ rows }, l) => copyRows(k, rows, slot, source.layers[l].rows, from, held.layers[l].end));
    for (const name of ["position", "token", "logprob"] as const) k.copy(this.state[name], slot, source.state[name], from, 1);
    k.copy(this.logits, slot, source.logits, from, 1);
    this.keeper.write(slot, held);
    this.keeper.build(slot, held, false);
    this.layers.forEach((_, l) => this.keeper.giveBack(slot, held, l, "prompt", 0, held.tokens.length));
    this.keeper.build(slot, held, true);
  }

  /** Commits memory for another row of the given slots; false where there is none. */
  makeRoom(slots: readonly number[]): boolean {
    try {
      for (const slot of slots) this.keeper.commit(slot, this.held[slot], 1);
      return true;
    } catch (error) {
      if (error instanceof RecallError && error.code === "RKV_MEMORY") return false;
      throw error;
    }
  }

  /**
   * Enqueues one step of the given slots: each feeds the token that waits. `ahead`: its number is not known yet, and `tell` will be called; there
   * is room for its row.
   */
  stepSlots(slots: readonly number[], recording: Recording, ahead = false): void {
    const active = new Int32Array(this.slots);
    for (const slot of slots) {
      const held = this.held[slot];
      if (held.tokens.length >= this.capacity) this.refuseLength(held.tokens.length + 1);
      active[slot] = 1;
      if (!ahead) this.keeper.commit(slot, held, 1);
    }
    if (active.some((on, slot) => on !== this.active[slot])) this.state.active.write(active);
    this.active = active;
    recording.run();
    for (const slot of slots) {
      const held = this.held[slot];
      const generated = held.tokens.length + 1 - held.prompt;
      if (!ahead) held.tokens.push(held.next!.token!);
      held.next = { token: null };
      this.keeper.stepped(held);
      this.steps[slot]++;
      this.sampler.fed(slot);
      this.layers.forEach((_, l) => this.keeper.giveBack(slot, held, l, "step", 0, 0, generated));
      this.keeper.build(slot, held, true);
    }
  }

  /** Which token a slot's step has chosen; `isRead`: the next step has read it by now. A choice that is none was not read: its row goes. */
  tell(slot: number, token: number, isRead: boolean): void {
    const held = this.held[slot];
    if (token >= 0 && isRead) held.tokens.push(token);
    else if (token >= 0) held.next = { token };
    else if (isRead) {
      for (const layer of held.layers) layer.end--;
      this.keeper.write(slot, held);
      this.state.position.write(Int32Array.of(held.tokens.length), slot);
    }
  }

  /** Gives a slot back all but its first `length` tokens, which were read as a prompt; its rows must lie where they were read. */
  cut(slot: number, length: number): void {
    const held = this.held[slot];
    held.tokens.length = length;
    for (const layer of held.layers) layer.end = length;
    held.prompt = held.answer = held.dense = length;
    held.next = null;
    this.keeper.write(slot, held);
    for (const { rows } of this.layers) rows.release(slot, length);
    this.sampler.changed(slot);
  }

  /** Clusters of a KV head of a slot: the mean over the layers that have some, 0 where none has. */
  clusters(slot: number): number {
    const counts = this.layers.flatMap(({ policy }, l) =>
      policy === everyRow || !policy.clusters ? [] : [policy.clusters(this.held[slot].layers[l].segments)]
    );
    return counts.length === 0 ? 0 : counts.reduce((sum, count) => sum + count, 0) / counts.length;
  }

  /** What attention has read for a slot. */
  async attended(slot: number): Promise<Attended> {
    const steps = this.steps[slot];
    const counters = new BigInt64Array((await this.state.attended.read()).buffer as ArrayBuffer);
    const sums = [0, 0, 0, 0];
    for (let layer = 0; layer < this.layers.length; layer++) {
      for (let source = 0; source < 4; source++) sums[source] += Number(counters[(layer * this.slots + slot) * 4 + source]);
    }
    return { steps, sink: sums[0], index: sums[1], tail: sums[2], estimates: sums[3] };
  }

  /** Bytes that the policy's selections read in one step of a slot, all layers. */
  selectBytes(slot: number): number {
    return this.layers.reduce((sum, { policy, sink }, l) => {
      if (policy === everyRow || !policy.selectBytes) return sum;
      return sum + policy.selectBytes(tailBegin(this.held[slot].layers[l], sink) - sink);
    }, 0);
  }

  get facts(): Saveable["facts"] {
    const { slots, capacity, chunk, kvDtype, held, steps } = this;
    return { slots, capacity, chunk, kvDtype, held: structuredClone(held), steps: [...steps] };
  }

  runs(): RowRun[] {
    const state = [...Object.values(this.state) as Tensor[], this.logits, ...this.memory.state].filter(({ elements }) => elements > 0);
    return [
      ...state.map((tensor) => ({ tensor, row: 0, rows: tensor.elements / (tensor.shape.length > 1 ? tensor.shape.at(-1)! : 1) })),
      ...this.layers.flatMap(({ rows }, l) => this.held.flatMap(({ layers }, slot) => rowRuns(rows, slot, 0, layers[l].end))),
    ];
  }
}

/** A whole number of an option. */
export function whole(name: string, value: number, least: number, most: number): void {
  if (Number.isInteger(value) && value >= least && value <= most) return;
  throw new RangeError(`Cannot use ${name} ${value}: want a whole number from ${count(least)} to ${count(most)}`);
}
