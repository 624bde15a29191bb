/** What all parts of the benchmark count with. */
export function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1];
}

/** Seeded tokens from the ordinary part of a vocabulary: the first are bytes and special ones. */
export class Tokens {
  #state = 12345;
  constructor(private readonly vocab: number) {}
  take(count: number): number[] {
    return Array.from({ length: count }, () => {
      this.#state = (Math.imul(this.#state, 1103515245) + 12345) >>> 0;
      return 300 +
        (this.#state >>> 8) % (Math.min(29000, this.vocab - 16) - 300);
    });
  }
}
