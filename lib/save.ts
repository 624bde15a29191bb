/** Sessions to files and back: rows, step state and policy state as they are, so that going on is as if nothing had been in between. */
import { type Arena, blockBytes } from "./device.ts";
import { count } from "./format.ts";
import { FormatError } from "./formats/checkpoint.ts";
import type { RowRun } from "./kv/mark.ts";
import type { LoadedModel } from "./model.ts";
import type { Policy } from "./policies/policy.ts";
import { checkFacts, identityOf, type SessionFacts } from "./saved_session.ts";
import { checkSums, readSaved, type SavedFile, writeSaved } from "./saved_file.ts";
import type { OnProgress } from "./types.ts";

/** About as many bytes go to or from the device at a time. */
const PIECE = 4 << 20;
/** Bytes, or runs, that are enqueued before the restored session is waited for. */
const [AHEAD, MOST_RUNS] = [64 << 20, 1024];

/** What of a session goes into a file, and what a file brings back. */
export interface Saveable {
  readonly model: LoadedModel;
  readonly policy: Policy;
  readonly facts: Omit<SessionFacts, "identity" | "note">;
  /** All that lives on the device, in an order that the facts alone decide. */
  runs(): RowRun[];
}

/** `note`: what JSON can hold; it comes back with the file. */
export async function save(path: string, session: Saveable, note?: unknown): Promise<void> {
  const facts: SessionFacts = { identity: await identityOf(session.model, session.policy), ...session.facts, note };
  await writeSaved(path, facts, session.runs().map(pieces));
}

/** A run's bytes, in pieces of whole blocks but for the last one; a piece is read while the one before it is written. */
async function* pieces(run: RowRun): AsyncGenerator<Uint8Array, void, undefined> {
  const { tensor } = run;
  const { offset, elements, bytes } = spanOf(run);
  const [unit, unitBytes] = tensor.dtype === "q8" ? [tensor.shape.at(-1)!, tensor.rowBytes] : [1, bytes / elements];
  const whole = blockBytes / common(blockBytes, unitBytes); // units that fill blocks to the byte
  const step = unit * whole * Math.max(1, Math.floor(PIECE / (whole * unitBytes)));
  const read = (done: number) => {
    const data = tensor.read(offset + done, Math.min(step, elements - done));
    data.catch(() => {}); // awaited in its turn
    return data;
  };
  let coming = read(0);
  for (let done = 0; done < elements; done += step) {
    const data = await coming;
    if (done + step < elements) coming = read(done + step);
    yield new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  }
}

/** The greatest common divisor. */
function common(a: number, b: number): number {
  return b === 0 ? a : common(b, a % b);
}

/** Opens a saved file and holds it against a model and a policy. Errors: FormatError that says what does not fit. */
export async function openSaved(path: string, model: LoadedModel, policy: Policy): Promise<SavedFile<SessionFacts>> {
  const file = await readSaved<SessionFacts>(path);
  checkFacts(path, file.facts, await identityOf(model, policy), model.shape.vocab, model.shape.layers);
  return file;
}

/** Fills a new session from a file. What was filled is void when this throws. */
export async function fill(file: SavedFile<SessionFacts>, session: Saveable, onProgress?: OnProgress): Promise<void> {
  const runs = session.runs();
  const spans = runs.map(spanOf);
  const total = spans.reduce((sum, { bytes }) => sum + bytes, 0);
  const odd = spans.findIndex(({ bytes }, i) => file.parts[i]?.bytes !== bytes);
  if (odd >= 0 || spans.length !== file.parts.length) {
    const found = file.parts.reduce((sum, { bytes }) => sum + bytes, 0);
    throw new FormatError(file.path, `it has ${count(found)} bytes of rows and state in ${file.parts.length} parts, want ${count(total)}`);
  }
  const { device } = session.model;
  using mapped = device.file(file.path);
  using arena = device.arena(4 * file.sums.length + (1 << 20));
  const sums = arena.tensor("u32", [file.sums.length]);
  sums.commit(file.sums.length);
  let [done, ahead, waiting] = [0, 0, 0];
  for (const [i, { tensor }] of runs.entries()) {
    const { offset, elements, bytes } = spans[i];
    const { at, sum } = file.parts[i];
    (tensor.host as Arena).load(tensor, offset, elements, mapped, at, sums, sum);
    done += bytes;
    ahead += bytes;
    if (ahead < AHEAD && ++waiting < MOST_RUNS && i < runs.length - 1) continue;
    await tensor.read(offset, Math.min(elements, tensor.dtype === "q8" ? tensor.shape.at(-1)! : 1));
    onProgress?.({ stage: "restore", done, total, unit: "bytes" });
    [ahead, waiting] = [0, 0];
  }
  checkSums(file, await sums.read() as Uint32Array);
}

/** A run as elements of its tensor, and their bytes. */
function spanOf({ tensor, row, rows }: RowRun): { offset: number; elements: number; bytes: number } {
  const [width, rowBytes] = tensor.shape.length === 1 ? [1, 4] : [tensor.shape.at(-1)!, tensor.rowBytes];
  return { offset: row * width, elements: rows * width, bytes: rows * rowBytes };
}
