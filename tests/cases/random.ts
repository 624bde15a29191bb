/** Random numbers that are the same on every machine: a function of the seed alone. */

export interface Random {
  /** Uniform in [0, 1). */
  uniform(): number;
  /** Standard normal. */
  normal(): number;
  /** A whole number in [0, end). */
  below(end: number): number;
  /** 0 .. count - 1, shuffled. */
  shuffled(count: number): number[];
}

/** Seeded with a text: a case's own name, so that a new case changes no other. */
export function random(seed: string): Random {
  let state = 0x811c9dc5; // FNV-1a of the text
  for (const letter of seed) state = Math.imul(state ^ letter.charCodeAt(0), 0x01000193);

  const uniform = () => { // splitmix32
    state = (state + 0x9e3779b9) | 0;
    let mixed = Math.imul(state ^ (state >>> 16), 0x21f0aaad);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
    return ((mixed ^ (mixed >>> 15)) >>> 0) / 2 ** 32;
  };
  const below = (end: number) => Math.floor(uniform() * end);
  return {
    uniform,
    below,
    normal: () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()), // Box and Muller
    shuffled(count) {
      const places = Array.from({ length: count }, (_, i) => i);
      for (let i = count - 1; i > 0; i--) {
        const j = below(i + 1);
        [places[i], places[j]] = [places[j], places[i]];
      }
      return places;
    },
  };
}
