/**
 * The file of a saved session: a body in parts, the CRC-32C of every 16 KiB of each part, and a footer in JSON, which a SHA-256 seals
 * together with the sums. Nothing is used of a file before its checksums were seen to hold; nothing stands under a file's name before it is
 * whole.
 *
 *     "recallkv" | parts | sums (u32 each) | footer | SHA-256 of sums and footer (32 bytes) | footer's length (8) | "recallkv"
 */
import { type FileHandle, open, rename, rm } from "node:fs/promises";
import { createHash } from "node:crypto";
import { blockBytes, checksums } from "./device.ts";
import { count } from "./format.ts";
import { FormatError } from "./formats/checkpoint.ts";

const MAGIC = new TextEncoder().encode("recallkv");
const TAIL = 32 + 8 + MAGIC.length;
const MOST_FOOTER = 256 << 20;
/** Bytes that are gathered before they are written. */
const GATHERED = 4 << 20;

interface Footer<Facts> {
  readonly version: 2;
  readonly facts: Facts;
  /** Bytes of each part. */
  readonly parts: readonly number[];
}

/** Checksums of a part. */
const blocksOf = (bytes: number) => Math.ceil(bytes / blockBytes);

/** Gathers what is written into large pieces; one is on its way while the next is filled. */
class Writer {
  #filling = new Uint8Array(GATHERED);
  #spare = new Uint8Array(GATHERED);
  #filled = 0;
  #writing: Promise<void> = Promise.resolve();

  constructor(private readonly file: FileHandle) {}

  async write(bytes: Uint8Array): Promise<void> {
    for (let done = 0; done < bytes.length;) {
      const take = Math.min(bytes.length - done, GATHERED - this.#filled);
      this.#filling.set(bytes.subarray(done, done + take), this.#filled);
      this.#filled += take;
      done += take;
      if (this.#filled === GATHERED) await this.#send();
    }
  }

  async end(): Promise<void> {
    await this.#send();
    await this.#writing;
  }

  async #send(): Promise<void> {
    const full = this.#filling.subarray(0, this.#filled);
    await this.#writing;
    this.#writing = writeAll(this.file, full);
    this.#writing.catch(() => {}); // awaited by the next one, or by end
    [this.#filling, this.#spare, this.#filled] = [this.#spare, this.#filling, 0];
  }
}

async function writeAll(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length;) done += (await file.write(bytes, done, bytes.length - done)).bytesWritten;
}

/** Writes parts and facts beside `path`, and renames the file into place. A part comes in pieces of whole blocks, but for its last one. */
export async function writeSaved(path: string, facts: unknown, parts: Iterable<AsyncIterable<Uint8Array>>): Promise<void> {
  const draft = `${path}.${crypto.randomUUID()}`;
  const file = await open(draft, "wx");
  try {
    const out = new Writer(file);
    const [sums, sizes]: [Uint8Array[], number[]] = [[], []];
    await out.write(MAGIC);
    for (const part of parts) {
      let size = 0;
      for await (const bytes of part) {
        sums.push(new Uint8Array(checksums(bytes).buffer));
        size += bytes.length;
        await out.write(bytes);
      }
      sizes.push(size);
    }
    const footer = new TextEncoder().encode(JSON.stringify({ version: 2, facts, parts: sizes } satisfies Footer<unknown>));
    const seal = createHash("sha256");
    for (const bytes of [...sums, footer]) {
      seal.update(bytes);
      await out.write(bytes);
    }
    await out.write(seal.digest());
    await out.write(new Uint8Array(new BigUint64Array([BigInt(footer.length)]).buffer));
    await out.write(MAGIC);
    await out.end();
    await file.sync();
    await file.close();
    await rename(draft, path);
  } catch (error) {
    await file.close().catch(() => {});
    await rm(draft, { force: true });
    throw error;
  }
}

/** What a saved file says of itself; its seal was seen to hold. */
export interface SavedFile<Facts> {
  readonly path: string;
  readonly facts: Facts;
  /** Where each part lies. */
  readonly parts: readonly Part[];
  /** Of all parts, one after the other. */
  readonly sums: Uint32Array;
}

interface Part {
  /** First byte of the file. */
  readonly at: number;
  readonly bytes: number;
  /** First of its sums. */
  readonly sum: number;
}

/** Opens a saved file; the parts are as they are read. Errors: FormatError. */
export async function readSaved<Facts>(path: string): Promise<SavedFile<Facts>> {
  const file = await open(path).catch((error) => {
    throw new FormatError(path, error.code === "ENOENT" ? "there is no such file" : String(error.message));
  });
  try {
    return await readFooter<Facts>(path, file);
  } finally {
    await file.close();
  }
}

/** Holds sums of what has arrived against those of the file. Errors: FormatError that says which bytes. */
export function checkSums(file: SavedFile<unknown>, found: Uint32Array): void {
  const wrong = file.sums.findIndex((sum, i) => sum !== found[i]);
  if (wrong < 0) return;
  const part = file.parts.findLast(({ sum, bytes }) => sum <= wrong && bytes > 0)!;
  const from = part.at + (wrong - part.sum) * blockBytes;
  const to = Math.min(from + blockBytes, part.at + part.bytes);
  throw new FormatError(file.path, `bytes ${count(from)} to ${count(to)} are not what was saved (checksum)`);
}

async function readFooter<Facts>(path: string, file: FileHandle): Promise<SavedFile<Facts>> {
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
  const footer = parse<Facts>(path, bytes);
  let [at, sum] = [MAGIC.length, 0];
  const parts = footer.parts.map((bytes): Part => {
    const part = { at, bytes, sum };
    at += bytes;
    sum += blocksOf(bytes);
    return part;
  });
  if (!Number.isSafeInteger(at) || at + 4 * sum + length + TAIL !== size) {
    throw new FormatError(path, `its parts end at byte ${count(at)} of ${count(size)}, which leaves no room for what follows them`);
  }
  const sums = new Uint8Array(4 * sum);
  await readAll(path, file, sums, at);
  const seal = createHash("sha256").update(sums).update(bytes).digest();
  if (!same(seal, tail.subarray(0, 32))) throw new FormatError(path, "its footer is not what was saved (checksum)");
  return { path, facts: footer.facts, parts, sums: new Uint32Array(sums.buffer) };
}

/** A footer whose seal is still to be looked at: what is no footer at all was damaged. */
function parse<Facts>(path: string, bytes: Uint8Array): Footer<Facts> {
  let footer: Partial<Footer<Facts>> | null = null;
  try {
    footer = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    // said below
  }
  if (!Array.isArray(footer?.parts) || footer.parts.some((part) => !Number.isInteger(part) || part < 0)) {
    if (typeof footer?.version === "number" && footer.version !== 2) {
      throw new FormatError(path, `it is of version ${footer.version}, want 2`);
    }
    throw new FormatError(path, "its footer is not what was saved (checksum)");
  }
  return footer as Footer<Facts>;
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
