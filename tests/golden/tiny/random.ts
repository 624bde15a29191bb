/**
 * Random numbers that are the same in every JavaScript engine: integers, and only those float operations that IEEE 754 rounds
 * exactly (no pow, log or cos). So a file made from a seed is the same file everywhere, bit for bit.
 */

/** A stream of unsigned 32-bit numbers that belongs to a name (Marsaglia's xorshift128, seeded by FNV-1a and mixed). */
export function randomOf(name: string): () => number {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(name)) hash = Math.imul(hash ^ byte, 0x01000193);
  const state = new Uint32Array(4);
  for (let i = 0; i < 4; i++) {
    hash = (hash + 0x9e3779b9) | 0;
    let mixed = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
    mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
    state[i] = (mixed ^ (mixed >>> 16)) | 1;
  }
  return () => {
    let t = state[0] ^ (state[0] << 11);
    t ^= t >>> 8;
    state[0] = state[1];
    state[1] = state[2];
    state[2] = state[3];
    state[3] = t ^ state[3] ^ (state[3] >>> 19);
    return state[3];
  };
}

/** Standard deviation of the sum of four uniform bytes. */
const BYTE_SUM = Math.sqrt(4 * (256 * 256 - 1) / 12);

/** n values with the given mean and deviation, nearly normal: four bytes summed. */
export function normal(name: string, n: number, deviation: number, mean = 0): Float32Array {
  const next = randomOf(name), out = new Float32Array(n), scale = deviation / BYTE_SUM;
  for (let i = 0; i < n; i++) {
    const r = next();
    out[i] = mean + scale * ((r & 255) + (r >>> 8 & 255) + (r >>> 16 & 255) + (r >>> 24) - 510);
  }
  return out;
}
