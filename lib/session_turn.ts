/** Whose turn it is in a session: one call at a time, but that others may decode while a slot is in the middle of its prompt. */
import { RecallError } from "./errors.ts";

export class Turn {
  #busy: string | null = null;
  #reading: number | null = null;
  #closed = false;

  /** The slot whose prompt is interrupted for others. */
  get reading(): number | null {
    return this.#reading;
  }

  /** Errors: RecallError `RKV_BUSY` while another call is at work, `RKV_STALE` once the session has ended. */
  check(action: string): void {
    if (this.#closed) throw new RecallError("RKV_STALE", action, `Cannot ${action}: the session was disposed`);
    if (this.#reading !== null && action !== "decode") {
      throw new RecallError("RKV_BUSY", action, `Cannot ${action}: slot ${this.#reading} is reading its prompt, want decode, or nothing`);
    }
    if (this.#busy) {
      throw new RecallError("RKV_BUSY", action, `Cannot ${action}: the session is busy with ${this.#busy}, want it awaited first`);
    }
  }

  /** Takes the turn; what is returned ends it. */
  take(action: string): Disposable {
    this.check(action);
    this.#busy = action;
    return { [Symbol.dispose]: () => void (this.#busy = null) };
  }

  /** Runs `work` in a turn of its own. */
  async alone<T>(action: string, work: () => Promise<T>): Promise<T> {
    using _turn = this.take(action);
    return await work();
  }

  /** Runs `between` while a slot is in the middle of its prompt: only decoding the others is allowed in it. */
  async aside(slot: number, between: () => Promise<void>): Promise<void> {
    const mine = this.#busy;
    this.#busy = null;
    this.#reading = slot;
    try {
      await between();
    } finally {
      this.#busy = mine;
      this.#reading = null;
    }
  }

  /** Ends the session; whether it had not ended before. */
  close(): boolean {
    const isFirst = !this.#closed;
    this.#closed = true;
    return isFirst;
  }
}
