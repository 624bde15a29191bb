/** Lengthens a state of one sequence, as llama.cpp writes it with flash attention on, by repeating its rows. */
import { closeSync, openSync, readFileSync, writeSync } from "node:fs";

/**
 * The file, all numbers little-endian: magic, version, tokens (count, ids); streams (1), cells, and for each cell its position and the
 * sequences it serves (count, ids); whether V is transposed (0), layers; then K of every layer, then V: type u32, bytes of a row u64, rows.
 */
export function lengthen(from: string, to: string, length: number): void {
  const bytes = readFileSync(from);
  let at = 0;
  const next = () => bytes.readUInt32LE((at += 4) - 4);
  const head = [next(), next()];
  const count = next();
  const tokens = bytes.subarray(at, at += 4 * count);
  const [streams, cells] = [next(), next()];
  for (let cell = 0; cell < cells; cell++) {
    next();
    const sequences = next();
    at += 4 * sequences;
  }
  const [transposed, layers] = [next(), next()];
  if (streams !== 1 || transposed !== 0) {
    throw new Error(
      "Cannot lengthen a state: want one sequence, and flash attention on",
    );
  }

  const file = openSync(to, "w");
  const write = (data: Uint8Array) => {
    for (let done = 0; done < data.length;) done += writeSync(file, data, done);
  };
  const numbers = (values: ArrayLike<number>) => write(new Uint8Array(Uint32Array.from(values).buffer));
  try {
    numbers([...head, length]);
    numbers(
      Array.from({ length }, (_, i) => tokens.readUInt32LE(4 * (i % count))),
    );
    numbers([1, length]);
    numbers(
      Array.from(
        { length: 3 * length },
        (_, i) => i % 3 === 0 ? i / 3 : i % 3 === 1 ? 1 : 0,
      ),
    );
    numbers([0, layers]);
    for (let plane = 0; plane < 2 * layers; plane++) {
      const type = next();
      const row = next();
      next(); // rows are shorter than 4 GiB
      numbers([type, row, 0]);
      const rows = bytes.subarray(at, at += row * cells);
      for (let left = length; left > 0; left -= cells) {
        write(rows.subarray(0, row * Math.min(left, cells)));
      }
    }
  } finally {
    closeSync(file);
  }
}
