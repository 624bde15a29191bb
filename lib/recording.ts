/** The step, at two speeds: enqueued op by op from TypeScript, or recorded once and replayed by native code alone. */
import type { Arena, Tape } from "./device.ts";

export class Recording {
  #tape: Tape | undefined;

  /** `enqueue` enqueues one step; `eager` runs it as it is each time, for debugging a policy. */
  constructor(private readonly arena: Arena, private readonly enqueue: () => void, private readonly eager: boolean) {}

  run(): void {
    if (this.eager) return this.enqueue();
    this.#tape ??= this.arena.record(this.enqueue);
    this.#tape.replay();
  }
}
