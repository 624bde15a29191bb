/**
 * The file of a saved session: bytes in pieces, then a footer in JSON that says what they are, each with its checksum. Nothing is taken from
 * a file before its checksum was seen to hold; nothing stands under a file's name before it is whole.
 *
 *     "recallkv" | pieces | footer | SHA-256 of the footer (32 bytes) | footer's length (8) | "recallkv"
 */
import { type FileHandle, open, rename, rm } from "node:fs/promises";
import { Buffer } from "node:buffer";
import { count } from "./format.ts";
import { FormatError } from "./formats/checkpoint.ts";

const MAGIC = new TextEncoder().encode("recallkv");
const TAIL = 32 + 8 + MAGIC.length;
const MOST_FOOTER = 256 << 20;
/** Pieces that are read and checked at a time. */
const AHEAD = 4;

interface Piece {
  readonly bytes: number;
  readonly sha256: string;
}

interface Footer<Facts> {
  readonly version: 1;
  readonly facts: Facts;
  readonly pieces: readonly Piece[];
}

async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<Uint8Array<ArrayBuffer>> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
}

const hex = (bytes: Uint8Array<ArrayBuffer>) => Buffer.from(bytes).toString("hex");

/** Writes pieces and facts beside `path`, and renames the file into place. */
export async function writeSaved(path: string, facts: unknown, pieces: AsyncIterable<Uint8Array<ArrayBuffer>>): Promise<void> {
  const draft = `${path}.${crypto.randomUUID()}`;
  const file = await open(draft, "wx");
  try {
    const written: Piece[] = [];
    await file.write(MAGIC);
    for await (const bytes of pieces) {
      const [sum] = await Promise.all([sha256(bytes), file.write(bytes)]);
      written.push({ bytes: bytes.length, sha256: hex(sum) });
    }
    const footer = new TextEncoder().encode(JSON.stringify({ version: 1, facts, pieces: written } satisfies Footer<unknown>));
    await file.write(footer);
    await file.write(await sha256(footer));
    await file.write(new Uint8Array(new BigUint64Array([BigInt(footer.length)]).buffer));
    await file.write(MAGIC);
    await file.sync();
    await file.close();
    await rename(draft, path);
  } catch (error) {
    await file.close().catch(() => {});
    await rm(draft, { force: true });
    throw error;
  }
}

/** A saved file that was opened: its facts are verified, its pieces are as they are read. Errors: FormatError. */
export class SavedFile<Facts> {
  private constructor(readonly path: string, private readonly file: FileHandle, private readonly footer: Footer<Facts>) {}

  static async open<Facts>(path: string): Promise<SavedFile<Facts>> {
    const file = await open(path).catch((error) => {
      throw new FormatError(path, error.code === "ENOENT" ? "there is no such file" : String(error.message));
    });
    try {
      return new SavedFile(path, file, await readFooter<Facts>(path, file));
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  get facts(): Facts {
    return this.footer.facts;
  }

  get pieces(): readonly { readonly bytes: number }[] {
    return this.footer.pieces;
  }

  /** The pieces in order. A few are read and checked while the caller is busy with one. */
  async *read(): AsyncGenerator<Uint8Array<ArrayBuffer>, void, undefined> {
    const { pieces } = this.footer;
    let [at, begun] = [MAGIC.length, 0];
    const coming: Promise<Uint8Array<ArrayBuffer>>[] = [];
    const begin = () => {
      const place = begun++;
      const { bytes, sha256: want } = pieces[place];
      const piece = this.#piece(place, at, bytes, want);
      at += bytes;
      piece.catch(() => {}); // awaited in its turn, unless one before it throws
      coming.push(piece);
    };
    while (begun < pieces.length || coming.length > 0) {
      while (begun < pieces.length && coming.length < AHEAD) begin();
      yield await coming.shift()!;
    }
  }

  async #piece(place: number, from: number, length: number, want: string): Promise<Uint8Array<ArrayBuffer>> {
    const bytes = new Uint8Array(length);
    await readAll(this.path, this.file, bytes, from);
    if (hex(await sha256(bytes)) === want) return bytes;
    throw new FormatError(this.path, `piece ${place} of ${this.pieces.length} is not what was saved (checksum)`);
  }

  async close(): Promise<void> {
    await this.file.close();
  }
}

async function readFooter<Facts>(path: string, file: FileHandle): Promise<Footer<Facts>> {
  const { size } = await file.stat();
  const ends = MAGIC.length + TAIL;
  if (size < ends) throw new FormatError(path, `it has ${count(size)} bytes, want at least ${ends} (is it a saved session, and whole?)`);
  const [head, tail] = [new Uint8Array(MAGIC.length), new Uint8Array(TAIL)];
  await readAll(path, file, head, 0);
  await readAll(path, file, tail, size - TAIL);
  if (!same(head, MAGIC)) throw new FormatError(path, "it does not begin as a saved session does");
  if (!same(tail.subarray(40), MAGIC)) throw new FormatError(path, "its end is missing: it was cut short");
  const length = Number(new DataView(tail.buffer).getBigUint64(32, true));
  if (length > Math.min(MOST_FOOTER, size - ends)) {
    throw new FormatError(path, `its footer has ${count(length)} bytes, want at most ${count(size - ends)}`);
  }
  const bytes = new Uint8Array(length);
  await readAll(path, file, bytes, size - TAIL - length);
  if (!same(await sha256(bytes), tail.subarray(0, 32))) throw new FormatError(path, "its footer is not what was saved (checksum)");
  const footer = JSON.parse(new TextDecoder().decode(bytes)) as Footer<Facts>;
  if (footer.version !== 1) throw new FormatError(path, `it is of version ${footer.version}, want 1`);
  const held = footer.pieces.reduce((sum, piece) => sum + piece.bytes, 0);
  if (held !== size - ends - length) {
    throw new FormatError(path, `its pieces have ${count(held)} bytes, want ${count(size - ends - length)}`);
  }
  return footer;
}

async function readAll(path: string, file: FileHandle, bytes: Uint8Array, at: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const { bytesRead } = await file.read(bytes, done, bytes.length - done, at + done);
    if (bytesRead === 0) throw new FormatError(path, `it ends at byte ${count(at + done)}, want ${count(bytes.length - done)} more`);
    done += bytesRead;
  }
}

function same(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}
