/** A session: a model, a policy, and the KV rows and step state of one or more slots in one arena. */
import type { LoadedModel } from "./model.ts";
import { activations, committed, everyRotation } from "./activations.ts";
import { type Activations, type SessionLayer, step } from "./decoder.ts";
import type { Arena, Device } from "./device.ts";
import { RecallError } from "./errors.ts";
import { count } from "./format.ts";
import { SessionAllocator } from "./kv/allocator.ts";
import { Mark, type RowRun, rowRuns } from "./kv/mark.ts";
import { RowKeeper } from "./kv/keeper.ts";
import { cloneSlot, emptySlot, type SlotState, tailBegin } from "./kv/slot.ts";
import { copyRows, reservedBytes, Rows, type RowsShape, type StepState, stepState } from "./kv/store.ts";
import { full } from "./policies/full.ts";
import { everyRow, type Policy, policyVersion, resolveBudget } from "./policies/policy.ts";
import { Prefill } from "./prefill.ts";
import { fill, openSaved, save, type Saveable } from "./save.ts";
import { Recording } from "./recording.ts";
import { process, Sampler } from "./sampling.ts";
import type { Tensor } from "./tensor.ts";
import type {
  Attended,
  DecodedToken,
  DecodeOptions,
  LogitsPlace,
  PrefillOptions,
  RestoreOptions,
  SessionOptions,
} from "./session_options.ts";
import type { KvDType, OnProgress } from "./types.ts";

export type { Attended, DecodedToken, DecodeOptions, LogitsPlace, PrefillOptions, RestoreOptions, SessionOptions };

export class Session {
  readonly slots: number;
  readonly capacity: number;
  readonly policy: Policy;
  /** Rows of the policy's index, per head. */
  readonly budget: number;
  readonly kvDtype: KvDType;
  readonly chunk: number;
  /** What `save` was given beside the session, once it has come back. */
  note: unknown;
  readonly #device: Device;
  readonly #arena: Arena;
  readonly #layers: SessionLayer[] = [];
  readonly #memory: SessionAllocator;
  readonly #state: StepState;
  readonly #step: Activations;
  readonly #block: Activations;
  readonly #keeper: RowKeeper;
  readonly #prefill: Prefill;
  readonly #logits: Tensor;
  readonly #sampler: Sampler;
  /** A step with its choice, and one that ends at the logits. */
  readonly #recording: Recording;
  readonly #toLogits: Recording;
  readonly #held: SlotState[];
  readonly #steps: number[];
  readonly #marks = new Set<Mark>();
  #active: Int32Array;
  #busy: string | null = null;
  #closed = false;

  constructor(readonly model: LoadedModel, options: SessionOptions = {}) {
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
    this.#device = device;

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
    this.#arena = device.arena(4 * rowBytes + 16 * slots * shape.vocab + 4 * capacity * shape.hidden + (1 << 30));
    const arena = this.#arena;
    this.#state = stepState(arena, layers, slots);
    this.#memory = new SessionAllocator(arena, slots, () => everyRotation(arena, model, capacity));
    for (let layer = 0; layer < layers; layer++) {
      const rows = new Rows(arena, layer, rowsShape, this.#state);
      this.#memory.nextLayer(rows);
      const policy = shape.window[layer] === null ? kv.layer(rows, this.#memory) : everyRow;
      this.#layers.push({ rows, weights: model.weights.layers[layer], policy, sink: policy === everyRow ? 0 : kv.sink });
    }
    const pieces = Math.ceil(capacity / 256) + 2;
    this.#step = activations(arena, model, slots, slots * heads * pieces * (headDim + 2));
    this.#block = activations(arena, model, this.chunk, 0);
    this.#logits = committed(arena, [slots, shape.vocab]);
    this.#held = Array.from({ length: slots }, () => emptySlot(layers));
    this.#steps = new Array<number>(slots).fill(0);
    this.#active = new Int32Array(slots);
    this.#keeper = new RowKeeper(device.kernels, this.#layers, this.#state);
    this.#held.forEach((held, slot) => this.#keeper.write(slot, held));
    this.#prefill = new Prefill(
      arena,
      device.kernels,
      model,
      this.#layers,
      this.#keeper,
      this.#block,
      this.chunk,
      kv.block === "prompt" ? { capacity } : null,
    );
    const sampler = this.#sampler = new Sampler(arena, slots, shape.vocab);
    const toLogits = () => {
      sampler.tally(device.kernels, this.#state.token, this.#state.active);
      step(device.kernels, model.weights, this.#layers, this.#state, this.#step, this.#logits, slots);
    };
    const chosen = () => {
      toLogits();
      this.#choose(this.#state.active, 0, slots);
    };
    this.#recording = new Recording(arena, chosen, eager);
    this.#toLogits = new Recording(arena, toLogits, eager);
  }

  /** Tokens that a slot holds. */
  length(slot = 0): number {
    return this.#slot(slot).tokens.length;
  }

  /** The tokens that a slot holds, oldest first. */
  tokens(slot = 0): readonly number[] {
    return this.#slot(slot).tokens;
  }

  /** The same, with the token that decode yielded last and that is read with what comes next. */
  text(slot = 0): number[] {
    const { tokens, next } = this.#slot(slot);
    return next === null || next.token === null ? [...tokens] : [...tokens, next.token];
  }

  /** Rows that each layer holds for a slot: fewer than tokens where the policy gave some back. */
  rows(slot = 0): number[] {
    return this.#slot(slot).layers.map(({ end }) => end);
  }

  /**
   * Reads tokens into a slot, after what it already holds. An aborted call throws the signal's reason and leaves the slot as it was.
   * Errors: RangeError past the capacity, for an unknown token or slot; RecallError `RKV_BUSY`, `RKV_MEMORY`.
   */
  prefill(tokens: readonly number[], options: PrefillOptions = {}): Promise<void> {
    const { slot = 0 } = options;
    const held = this.#slot(slot);
    return this.#alone("prefill", async () => {
      const pending = held.next?.token ?? null; // what decode yielded belongs to the text
      const all = pending === null ? [...tokens] : [pending, ...tokens];
      this.#checkTokens(tokens, held.tokens.length + all.length);
      if (all.length === 0) return;
      options.signal?.throwIfAborted();
      const before = new Mark(this.#device, this.#device.kernels, slot, held, this.#marked(), this.#layers);
      const read = options.query === "sparse" ? this.#feed : this.#readPrompt;
      try {
        const finished = await this.#cancellable(options.signal, () => read.call(this, slot, all, options.onProgress));
        if (!finished) throw options.signal?.reason;
        held.answer = held.tokens.length;
        this.#sampler.changed(slot);
      } catch (error) {
        this.#restore(before);
        throw error;
      } finally {
        before[Symbol.dispose]();
      }
    });
  }

  /**
   * Takes over what a slot of another session has read, as if this one had read it (to the bit, where a policy would have moved no rows
   * before the end): one prefill then serves many policies. This slot must be empty, and the other session's policy one that leaves rows as they were read. Errors: TypeError for a policy that must see the queries
   * of a prompt; RangeError for another model, another `kvDtype`, or a text past the capacity.
   */
  async adopt(source: Session, options: { slot?: number; from?: number } = {}): Promise<void> {
    const { slot = 0, from = 0 } = options;
    const theirs = source.#slot(from);
    if (this.#slot(slot).tokens.length > 0) throw new RangeError(`Cannot adopt: slot ${slot} holds tokens, want it empty (reset it)`);
    if (source.model !== this.model || source.kvDtype !== this.kvDtype) {
      throw new RangeError("Cannot adopt: the other session has another model or kvDtype, want the same");
    }
    if (theirs.tokens.length > this.capacity) this.#refuseLength(theirs.tokens.length);
    if (!source.#layers.every(leavesRows)) throw new TypeError(`Cannot adopt from ${source.policy.name}: it moves rows, want full()`);
    if (this.#layers.some(({ policy }) => policy !== everyRow && policy.observe)) {
      throw new TypeError(`Cannot adopt for ${this.policy.name}: it must see the queries of the prompt, want a prefill`);
    }
    source.#idle("adopt");
    await this.#alone("adopt", async () => {
      const k = this.#device.kernels;
      const held = this.#held[slot] = cloneSlot(theirs);
      this.#sampler.changed(slot);
      this.#keeper.commit(slot, held, 0);
      this.#layers.forEach(({ rows }, l) => copyRows(k, rows, slot, source.#layers[l].rows, from, held.layers[l].end));
      for (const [to, of] of [[this.#state.position, source.#state.position], [this.#state.token, source.#state.token]]) {
        k.copy(to, slot, of, from, 1);
      }
      k.copy(this.#state.logprob, slot, source.#state.logprob, from, 1);
      k.copy(this.#logits, slot, source.#logits, from, 1);
      this.#keeper.write(slot, held);
      this.#keeper.build(slot, held, false);
      this.#layers.forEach((_, l) => this.#keeper.giveBack(slot, held, l, "prompt", 0));
      this.#keeper.build(slot, held, true);
      await this.#arena.fence();
    });
  }

  /**
   * Decodes: yields each active slot's next token, step by step. Ends when every slot met a stop token, `maxTokens` or the capacity;
   * throws the signal's reason when aborted. Leaving the loop early is fine: nothing runs on.
   */
  async *decode(options: DecodeOptions = {}): AsyncGenerator<DecodedToken, void, undefined> {
    const { maxTokens = Infinity, signal, stop = this.model.shape.eos, onLogits } = options;
    const slots = options.slots ?? this.#held.flatMap(({ next }, slot) => next ? [slot] : []);
    for (const slot of slots) {
      if (!this.#slot(slot).next) throw new RangeError(`Cannot decode: slot ${slot} is empty, want a prefill first`);
    }
    this.#idle("decode");
    const asks = this.#sampler.writeAll(options.sampling ?? {}, slots, (slot) => this.#held[slot]);
    let running = [...slots];
    let yielded = 0;
    this.#enter("decode");
    try {
      while (running.length > 0 && yielded < maxTokens) {
        signal?.throwIfAborted();
        // A token that was yielded before is fed first: what comes next is its successor. Where none was, it is chosen from the logits.
        const isFed = (slot: number) => this.#held[slot].next!.token !== null;
        const unchosen = onLogits ? running : running.filter((slot) => !isFed(slot));
        const fed = running.filter(isFed);
        if (fed.length > 0) this.#stepSlots(fed, onLogits ? this.#toLogits : this.#recording);
        if (onLogits) await process(this.#logits, running, (slot) => this.#held[slot].tokens.length, onLogits);
        for (const slot of unchosen) this.#choose(null, slot, 1);
        const [tokens, logprobs, likeliest] = await Promise.all([
          this.#state.token.read(),
          this.#state.logprob.read(),
          asks.some((wanted) => wanted > 0) ? this.#sampler.likeliest(asks) : undefined,
        ]);
        for (const slot of running) {
          if (tokens[slot] < 0) {
            throw new RecallError("RKV_NAN", "decode", `Cannot decode: no logit of slot ${slot} is a number, want sound weights`);
          }
          this.#held[slot].next = { token: tokens[slot] };
        }
        yielded++;
        for (const slot of running) {
          yield { slot, token: tokens[slot], logprob: logprobs[slot], ...(likeliest && { likeliest: likeliest[slot] }) };
        }
        running = running.filter((slot) => !stop.includes(tokens[slot]) && this.#held[slot].tokens.length < this.capacity);
      }
    } finally {
      this.#busy = null;
    }
  }

  /** Logits of the next token of a slot: f32[vocab]. */
  async logits(options: { slot?: number } = {}): Promise<Float32Array> {
    const { slot = 0 } = options;
    if (!this.#slot(slot).next) throw new RangeError(`Cannot read logits: slot ${slot} is empty, want a prefill first`);
    const { vocab } = this.model.shape;
    return await this.#logits.read(slot * vocab, vocab) as Float32Array;
  }

  /** A place to come back to with `rewind`: small copies, no rows that stay where they are. */
  mark(slot = 0): Mark {
    this.#idle("mark");
    const mark = new Mark(this.#device, this.#device.kernels, slot, this.#slot(slot), this.#marked(), this.#layers);
    this.#marks.add(mark);
    return mark;
  }

  /** Comes back to a mark, as if nothing had happened since; marks made later are void. */
  rewind(mark: Mark): void {
    this.#idle("rewind");
    if (!this.#marks.has(mark)) {
      throw new RangeError("Cannot rewind: this mark is not (or no longer) of this session, want one made before the present place");
    }
    this.#restore(mark);
    let later = false;
    for (const other of [...this.#marks]) {
      if (other.slot === mark.slot && later) {
        this.#marks.delete(other);
        other[Symbol.dispose]();
      }
      later ||= other === mark;
    }
  }

  /** Gives a mark's memory back: one cannot come back to it any more. */
  forget(mark: Mark): void {
    if (this.#marks.delete(mark)) mark[Symbol.dispose]();
  }

  /** Empties a slot. */
  reset(slot = 0): void {
    this.#idle("reset");
    this.#slot(slot);
    const held = this.#held[slot] = emptySlot(this.#layers.length);
    this.#sampler.changed(slot);
    this.#memory.reset(slot);
    this.#keeper.write(slot, held);
    for (const { rows } of this.#layers) rows.release(slot, 0);
    for (const mark of [...this.#marks]) {
      if (mark.slot !== slot) continue;
      this.#marks.delete(mark);
      mark[Symbol.dispose]();
    }
  }

  /**
   * Writes rows, step state and policy state of all slots to a file, beside `path` first and renamed when it is whole. Marks are not saved.
   * `LoadedModel.restore` brings the session back, to the bit. `note`: what JSON can hold; it comes back as the session's `note`.
   */
  save(path: string, note?: unknown): Promise<void> {
    return this.#alone("save", () => save(path, this.#saveable(note)));
  }

  /** A session as a file has it. Errors: FormatError for a file that is damaged, or of another model, tokenizer, RoPE or policy. */
  static async restore(model: LoadedModel, path: string, options: RestoreOptions = {}): Promise<Session> {
    const { kv = full(), onProgress, ...rest } = options;
    const file = await openSaved(path, model, kv);
    let session: Session | undefined;
    try {
      const { slots, capacity, chunk, kvDtype, held, steps } = file.facts;
      session = new Session(model, { ...rest, kv, slots, capacity, chunk, kvDtype });
      for (const [slot, state] of held.entries()) {
        session.#held[slot] = state;
        session.#steps[slot] = steps[slot];
        session.#keeper.commit(slot, state, 0);
      }
      session.note = file.facts.note;
      await fill(file, session.#saveable(), onProgress);
      session.#active = (await session.#state.active.read()) as Int32Array;
      return session;
    } catch (error) {
      session?.[Symbol.dispose]();
      throw error;
    } finally {
      await file.close();
    }
  }

  #saveable(note?: unknown): Saveable {
    const { model, policy, slots, capacity, chunk, kvDtype } = this;
    const whole = (tensor: Tensor): RowRun => ({
      tensor,
      row: 0,
      rows: tensor.elements / (tensor.shape.length > 1 ? tensor.shape.at(-1)! : 1),
    });
    const runs = () => [
      ...[...Object.values(this.#state) as Tensor[], this.#logits, ...this.#memory.state].filter(({ elements }) => elements > 0).map(whole),
      ...this.#layers.flatMap(({ rows }, l) => this.#held.flatMap(({ layers }, slot) => rowRuns(rows, slot, 0, layers[l].end))),
    ];
    return {
      model,
      policy,
      facts: { slots, capacity, chunk, kvDtype, held: structuredClone(this.#held), steps: [...this.#steps], note },
      runs,
    };
  }

  /** What attention has read for a slot since the session began. */
  async attended(slot = 0): Promise<Attended> {
    this.#slot(slot);
    const steps = this.#steps[slot];
    const counters = new BigInt64Array((await this.#state.attended.read()).buffer as ArrayBuffer);
    const sums = [0, 0, 0, 0];
    for (let layer = 0; layer < this.#layers.length; layer++) {
      for (let source = 0; source < 4; source++) sums[source] += Number(counters[(layer * this.slots + slot) * 4 + source]);
    }
    return { steps, sink: sums[0], index: sums[1], tail: sums[2], estimates: sums[3] };
  }

  /** Bytes that the policy's selections read in one step of a slot, all layers. */
  selectBytes(slot = 0): number {
    const held = this.#slot(slot);
    return this.#layers.reduce((sum, { policy, sink }, l) => {
      if (policy === everyRow || !policy.selectBytes) return sum;
      return sum + policy.selectBytes(tailBegin(held.layers[l], sink) - sink);
    }, 0);
  }

  /** Bytes of memory: what the session has committed. */
  get memory(): number {
    return this.#arena.memory().committed;
  }

  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const mark of this.#marks) mark[Symbol.dispose]();
    this.#arena[Symbol.dispose]();
  }

  async #readPrompt(slot: number, tokens: readonly number[], onProgress: OnProgress | undefined): Promise<boolean> {
    const k = this.#device.kernels;
    const held = this.#held[slot];
    const { last, finished } = await this.#prefill.read({ slot, held, tokens, onProgress });
    if (!finished) return false;
    k.copy(this.#step.x, slot, this.#block.x, last, 1);
    k.head(this.#logits, this.#step.x, this.model.weights.ends, null, this.#step.work, slot, 1);
    this.#state.position.write(Int32Array.of(held.tokens.length), slot);
    held.next = { token: null };
    return await this.#arena.fence();
  }

  /** Token by token through the policy's own reading. */
  async #feed(slot: number, tokens: readonly number[], onProgress: OnProgress | undefined): Promise<boolean> {
    const held = this.#held[slot];
    let previous = Promise.resolve(true);
    this.#state.position.write(Int32Array.of(held.tokens.length), slot);
    for (let i = 0; i < tokens.length; i++) {
      this.#state.token.write(Int32Array.of(tokens[i]), slot);
      held.next = { token: tokens[i] };
      this.#stepSlots([slot], this.#recording);
      if (i % 32 < 31 && i < tokens.length - 1) continue;
      const fence = this.#arena.fence();
      fence.catch(() => {});
      if (!(await previous)) return await fence && false;
      previous = fence;
      onProgress?.({ stage: "prefill", done: i + 1, total: tokens.length, unit: "tokens" });
    }
    return await previous;
  }

  /** Enqueues the choice of rows [first, first + count) from their logits. */
  #choose(active: Tensor | null, first: number, count: number): void {
    const { token, logprob, position } = this.#state;
    this.#sampler.choose(this.#device.kernels, { token, logprob, logits: this.#logits, position }, active, first, count);
  }

  /** Enqueues one step of the given slots: each feeds the token that waits. */
  #stepSlots(slots: readonly number[], recording: Recording): void {
    const active = new Int32Array(this.slots);
    for (const slot of slots) {
      const held = this.#held[slot];
      if (held.tokens.length >= this.capacity) this.#refuseLength(held.tokens.length + 1);
      active[slot] = 1;
      this.#keeper.commit(slot, held, 1);
    }
    if (active.some((on, slot) => on !== this.#active[slot])) this.#state.active.write(active);
    this.#active = active;
    recording.run();
    for (const slot of slots) {
      const held = this.#held[slot];
      held.tokens.push(held.next!.token!);
      held.next = { token: null };
      this.#keeper.stepped(held);
      this.#steps[slot]++;
      this.#sampler.fed(slot);
      this.#layers.forEach((_, l) => this.#keeper.giveBack(slot, held, l, "step", 0));
      this.#keeper.build(slot, held, true);
    }
  }

  /** Runs work that `signal` may cut short; true when it ran to its end. Afterwards nothing of it is on the device any more. */
  async #cancellable(signal: AbortSignal | undefined, work: () => Promise<boolean>): Promise<boolean> {
    const cancel = () => this.#arena.cancel(true);
    signal?.addEventListener("abort", cancel, { once: true });
    try {
      return await work();
    } finally {
      signal?.removeEventListener("abort", cancel);
      if (signal?.aborted) {
        await this.#arena.fence().catch(() => {});
        this.#arena.cancel(false);
      }
    }
  }

  /** State of a slot that a mark copies, beside the unbuilt rows. */
  #marked(): Tensor[] {
    return [this.#state.position, this.#state.token, this.#state.logprob, this.#logits, ...this.#memory.state];
  }

  #restore(mark: Mark): void {
    this.#keeper.commit(mark.slot, mark.state, 0);
    const held = this.#held[mark.slot] = mark.restore(this.#device.kernels);
    this.#keeper.write(mark.slot, held);
    this.#layers.forEach(({ rows }, l) => rows.release(mark.slot, held.layers[l].end));
    this.#sampler.changed(mark.slot);
  }

  #checkTokens(tokens: readonly number[], length: number): void {
    const { vocab } = this.model.shape;
    const unknown = tokens.find((token) => !Number.isInteger(token) || token < 0 || token >= vocab);
    if (unknown !== undefined) {
      throw new RangeError(`Cannot prefill: token ${unknown} is not in the vocabulary, want 0 to ${count(vocab - 1)}`);
    }
    if (length > this.capacity) this.#refuseLength(length);
  }

  #refuseLength(length: number): never {
    throw new RangeError(`Cannot hold ${count(length)} tokens: the session's capacity is ${count(this.capacity)} (pass a larger capacity)`);
  }

  #slot(slot: number): SlotState {
    whole("slot", slot, 0, this.slots - 1);
    return this.#held[slot];
  }

  #idle(action: string): void {
    if (this.#closed) throw new RecallError("RKV_STALE", action, `Cannot ${action}: the session was disposed`);
    if (this.#busy) {
      throw new RecallError("RKV_BUSY", action, `Cannot ${action}: the session is busy with ${this.#busy}, want it awaited first`);
    }
  }

  #enter(action: string): void {
    this.#idle(action);
    this.#busy = action;
  }

  async #alone(action: string, work: () => Promise<void>): Promise<void> {
    this.#enter(action);
    try {
      await work();
    } finally {
      this.#busy = null;
    }
  }
}

/** Whether rows stay where they were read. */
function leavesRows({ policy }: SessionLayer): boolean {
  return policy === everyRow || !(policy.build || policy.giveBack || policy.rowsAfterStep);
}

function whole(name: string, value: number, least: number, most: number): void {
  if (Number.isInteger(value) && value >= least && value <= most) return;
  throw new RangeError(`Cannot use ${name} ${value}: want a whole number from ${count(least)} to ${count(most)}`);
}
