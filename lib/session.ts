/** A session: a model, a policy, and the KV rows and step state of one or more slots in one arena. */
import { decodeSteps } from "./decoding.ts";
import type { OpTimes } from "./device.ts";
import type { LoadedModel } from "./model.ts";
import { Mark } from "./kv/mark.ts";
import { Marks } from "./kv/marks.ts";
import { emptySlot, type SlotState } from "./kv/slot.ts";
import { knownOptions } from "./options.ts";
import { full } from "./policies/full.ts";
import { everyRow, type Policy } from "./policies/policy.ts";
import { cancellable, feed, readPrompt, sharedTokens } from "./reading.ts";
import { fill, openSaved, save } from "./save.ts";
import type {
  Attended,
  DecodedToken,
  DecodeOptions,
  LogitsPlace,
  PrefillOptions,
  RestoreOptions,
  SessionOptions,
} from "./session_options.ts";
import { checkDecode, checkPrefill, checkSession, restoreOptions } from "./session_options.ts";
import { SessionRoom, whole } from "./session_room.ts";
import { Turn } from "./session_turn.ts";
import type { KvDType } from "./types.ts";

export type { Attended, DecodedToken, DecodeOptions, LogitsPlace, PrefillOptions, RestoreOptions, SessionOptions };

/** The KV rows and step state of one or more sequences. Make one with `LoadedModel.session`. */
export class Session {
  /** Sequences served by one step. */
  readonly slots: number;
  /** Most tokens of a slot. */
  readonly capacity: number;
  /** Which rows a step reads. */
  readonly policy: Policy;
  /** Rows of the policy's index, per head. */
  readonly budget: number;
  /** dtype of the KV rows. */
  readonly kvDtype: KvDType;
  /** Prompt tokens per op. */
  readonly chunk: number;
  /** What `save` was given beside the session, once it has come back. */
  note: unknown;
  readonly #room: SessionRoom;
  readonly #marks = new Marks();
  readonly #turn = new Turn();

  /** Made by `LoadedModel.session`. */
  constructor(readonly model: LoadedModel, options: SessionOptions = {}) {
    checkSession(options);
    const room = this.#room = new SessionRoom(model, options);
    this.slots = room.slots;
    this.capacity = room.capacity;
    this.chunk = room.chunk;
    this.policy = room.policy;
    this.kvDtype = room.kvDtype;
    this.budget = room.budget;
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
   * Reads tokens into a slot, after what it already holds; returns how many of them were read. An aborted call throws the signal's reason and leaves the slot as it was.
   * Errors: RangeError past the capacity, for an unknown token or slot; RecallError `RKV_BUSY`, `RKV_MEMORY`.
   */
  prefill(tokens: readonly number[], options: PrefillOptions = {}): Promise<number> {
    const { slot = 0, signal, onProgress, between } = options;
    checkPrefill(options);
    this.#slot(slot);
    return this.#turn.alone("prefill", async () => {
      const room = this.#room;
      signal?.throwIfAborted();
      if (options.reuse) room.checkTokens(tokens, tokens.length);
      const unread = options.reuse ? this.#goBack(slot, tokens) : tokens;
      const held = this.#slot(slot);
      const pending = held.next?.token ?? null; // what decode yielded belongs to the text
      const all = pending === null ? [...unread] : [pending, ...unread];
      room.checkTokens(unread, held.tokens.length + all.length);
      if (all.length === 0 || (options.reuse && unread.length === 0)) return 0;
      if (options.query !== "sparse" && this.policy.block !== "prompt") room.keeper.commit(slot, held, all.length); // refused before anything is read
      const before = new Mark(room.device, room.device.kernels, slot, held, room.marked, room.layers);
      const read = options.query === "sparse" ? feed : readPrompt;
      try {
        const finished = await cancellable(room, signal, (spare) =>
          read({
            room,
            slot,
            tokens: all,
            onProgress,
            ...(between && { between: () => spare(() => this.#turn.aside(slot, between)) }),
          }));
        if (!finished) throw signal?.reason;
        held.answer = held.tokens.length;
        room.sampler.changed(slot);
        return unread.length;
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
   * before the end): one prefill then serves many policies. This slot must be empty, and the other session's policy one that leaves rows as
   * they were read. Errors: TypeError for a policy that must see the queries of a prompt; RangeError for another model, another `kvDtype`, or
   * a text past the capacity.
   */
  async adopt(source: Session, options: { slot?: number; from?: number } = {}): Promise<void> {
    const { slot = 0, from = 0 } = options;
    const theirs = source.#slot(from);
    if (this.#slot(slot).tokens.length > 0) throw new RangeError(`Cannot adopt: slot ${slot} holds tokens, want it empty (reset it)`);
    if (source.model !== this.model || source.kvDtype !== this.kvDtype) {
      throw new RangeError("Cannot adopt: the other session has another model or kvDtype, want the same");
    }
    if (theirs.tokens.length > this.capacity) this.#room.refuseLength(theirs.tokens.length);
    if (!source.#room.leavesRows) throw new TypeError(`Cannot adopt from ${source.policy.name}: it moves rows, want full()`);
    if (this.#room.layers.some(({ policy }) => policy !== everyRow && policy.observe)) {
      throw new TypeError(`Cannot adopt for ${this.policy.name}: it must see the queries of the prompt, want a prefill`);
    }
    source.#turn.check("adopt");
    await this.#turn.alone("adopt", async () => {
      this.#room.adopt(slot, source.#room, from);
      await this.#room.arena.fence();
    });
  }

  /**
   * Decodes: yields each active slot's next token, step by step. Ends when every slot met a stop token, `maxTokens` or the capacity;
   * throws the signal's reason when aborted. Leaving the loop early is fine: nothing runs on, and decoding goes on where it was left.
   */
  async *decode(options: DecodeOptions = {}): AsyncGenerator<DecodedToken, void, undefined> {
    const { maxTokens = Infinity, signal, stop = this.model.shape.eos, onLogits } = options;
    checkDecode(options);
    const slots = options.slots ?? this.#room.held.flatMap(({ next }, slot) => next && slot !== this.#turn.reading ? [slot] : []);
    for (const slot of slots) {
      if (slot === this.#turn.reading) throw new RangeError(`Cannot decode: slot ${slot} is reading its prompt, want another one`);
      if (!this.#slot(slot).next) throw new RangeError(`Cannot decode: slot ${slot} is empty, want a prefill first`);
    }
    using _turn = this.#turn.take("decode");
    const asks = this.#room.sampler.writeAll(options.sampling ?? {}, slots, (slot) => this.#room.held[slot]);
    const ahead = !onLogits && (options.ahead ?? this.model.device.kind === "cuda");
    for await (const step of decodeSteps({ room: this.#room, slots, asks, maxTokens, signal, stop, onLogits, ahead })) {
      for (const token of step) yield token;
    }
  }

  /** Logits of the next token of a slot: f32[vocab]. */
  async logits(options: { slot?: number } = {}): Promise<Float32Array> {
    const { slot = 0 } = options;
    if (!this.#slot(slot).next) throw new RangeError(`Cannot read logits: slot ${slot} is empty, want a prefill first`);
    const { vocab } = this.model.shape;
    return await this.#room.logits.read(slot * vocab, vocab) as Float32Array;
  }

  /** A place to come back to with `rewind`: small copies, no rows that stay where they are. */
  mark(slot = 0): Mark {
    this.#turn.check("mark");
    const room = this.#room;
    return this.#marks.add(new Mark(room.device, room.device.kernels, slot, this.#slot(slot), room.marked, room.layers));
  }

  /** Comes back to a mark, as if nothing had happened since; marks made later are void. */
  rewind(mark: Mark): void {
    this.#turn.check("rewind");
    if (!this.#marks.has(mark)) {
      throw new RangeError("Cannot rewind: this mark is not (or no longer) of this session, want one made before the present place");
    }
    this.#rewind(mark);
  }

  /** Gives a mark's memory back: one cannot come back to it any more. */
  forget(mark: Mark): void {
    this.#marks.forget(mark);
  }

  /** Empties a slot. */
  reset(slot = 0): void {
    this.#turn.check("reset");
    this.#empty(slot);
  }

  /**
   * Writes rows, step state and policy state of all slots to a file, beside `path` first and renamed when it is whole. Marks are not saved.
   * `LoadedModel.restore` brings the session back, to the bit. `note`: what JSON can hold; it comes back as the session's `note`.
   */
  save(path: string, note?: unknown): Promise<void> {
    return this.#turn.alone("save", () => save(path, this.#room, note));
  }

  /** A session as a file has it. Errors: FormatError for a file that is damaged, or of another model, tokenizer, RoPE or policy. */
  static async restore(model: LoadedModel, path: string, options: RestoreOptions = {}): Promise<Session> {
    knownOptions("restore", options, restoreOptions);
    const { kv = full(), onProgress, ...rest } = options;
    const file = await openSaved(path, model, kv);
    let session: Session | undefined;
    try {
      const { slots, capacity, chunk, kvDtype, held, steps } = file.facts;
      session = new Session(model, { ...rest, kv, slots, capacity, chunk, kvDtype });
      for (const [slot, state] of held.entries()) {
        session.#room.held[slot] = state;
        session.#room.steps[slot] = steps[slot];
        session.#room.keeper.commit(slot, state, 0);
      }
      session.note = file.facts.note;
      await fill(file, session.#room, onProgress);
      session.#room.active = (await session.#room.state.active.read()) as Int32Array;
      return session;
    } catch (error) {
      session?.[Symbol.dispose]();
      throw error;
    }
  }

  /** What attention has read for a slot since the session began. */
  async attended(slot = 0): Promise<Attended> {
    this.#slot(slot);
    return await this.#room.attended(slot);
  }

  /** Bytes that the policy's selections read in one step of a slot, all layers. */
  selectBytes(slot = 0): number {
    this.#slot(slot);
    return this.#room.selectBytes(slot);
  }

  /** Clusters of a KV head of a slot: the mean over the layers that have some, 0 where none has. */
  clusters(slot = 0): number {
    this.#slot(slot);
    return this.#room.clusters(slot);
  }

  /**
   * Starts or stops adding up the time of each op, for `times`: on a GPU steps are then run op by op. `"replays"`: the time that starting a
   * recorded step takes on the host, as the op "replay", on a GPU.
   */
  clock(on: boolean | "replays"): void {
    this.#room.arena.clock(on);
  }

  /** Runs and seconds of each op that ran while the clock went. */
  async times(): Promise<OpTimes> {
    await this.#room.arena.fence();
    return this.#room.arena.times();
  }

  /** Bytes of memory: what the session has committed. */
  get memory(): number {
    return this.#room.arena.memory().committed;
  }

  /** Gives everything back. Nothing of it may be used afterwards. */
  [Symbol.dispose](): void {
    if (!this.#turn.close()) return;
    this.#marks[Symbol.dispose]();
    this.#room.arena[Symbol.dispose]();
  }

  /** What of a text a slot does not hold yet, after it went back to what it shares with it. */
  #goBack(slot: number, all: readonly number[]): readonly number[] {
    const text = this.text(slot);
    const shared = sharedTokens(text, all);
    if (shared === text.length && (shared < all.length || shared === this.length(slot))) return all.slice(shared);
    const fits = ({ slot: of, state: { tokens, next } }: Mark) =>
      of === slot && !next?.token && sharedTokens(tokens, all) === tokens.length;
    const mark = this.#marks.newest(fits);
    const cut = this.#room.canCut ? Math.min(shared, this.#slot(slot).dense, all.length - 1) : 0;
    if (cut > (mark?.length ?? 0)) {
      this.#room.cut(slot, cut);
      this.#marks.keep(slot, (other) => other.length <= cut);
    } else if (mark) this.#rewind(mark);
    else this.#empty(slot);
    return all.slice(this.text(slot).length);
  }

  #rewind(mark: Mark): void {
    this.#restore(mark);
    this.#marks.keepUpTo(mark);
  }

  #empty(slot: number): void {
    const room = this.#room;
    this.#slot(slot);
    const held = room.held[slot] = emptySlot(room.layers.length);
    room.sampler.changed(slot);
    room.memory.reset(slot);
    room.keeper.write(slot, held);
    for (const { rows } of room.layers) rows.release(slot, 0);
    this.#marks.keep(slot, () => false);
  }

  #restore(mark: Mark): void {
    this.#room.keeper.commit(mark.slot, mark.state, 0);
    const held = this.#room.held[mark.slot] = mark.restore(this.#room.device.kernels);
    this.#room.keeper.write(mark.slot, held);
    this.#room.layers.forEach(({ rows }, l) => rows.release(mark.slot, held.layers[l].end));
    this.#room.sampler.changed(mark.slot);
  }

  #slot(slot: number): SlotState {
    whole("slot", slot, 0, this.slots - 1);
    return this.#room.held[slot];
  }
}
