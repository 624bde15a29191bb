/** The marks of a session: which there are, and which are void. */
import type { Mark } from "./mark.ts";

export class Marks {
  readonly #marks = new Set<Mark>();

  add(mark: Mark): Mark {
    this.#marks.add(mark);
    return mark;
  }

  has(mark: Mark): boolean {
    return this.#marks.has(mark);
  }

  /** The newest that fits. */
  newest(fits: (mark: Mark) => boolean): Mark | undefined {
    return [...this.#marks].filter(fits).at(-1);
  }

  /** Gives a mark's memory back: one cannot come back to it any more. */
  forget(mark: Mark): void {
    if (this.#marks.delete(mark)) mark[Symbol.dispose]();
  }

  /** Those of a slot that are not to be kept are void. */
  keep(slot: number, isKept: (mark: Mark) => boolean): void {
    for (const mark of [...this.#marks]) if (mark.slot === slot && !isKept(mark)) this.forget(mark);
  }

  /** Those of its slot that were made after a mark are void. */
  keepUpTo(mark: Mark): void {
    const all = [...this.#marks];
    const earlier = all.slice(0, all.indexOf(mark) + 1);
    this.keep(mark.slot, (other) => earlier.includes(other));
  }

  [Symbol.dispose](): void {
    for (const mark of this.#marks) mark[Symbol.dispose]();
  }
}
