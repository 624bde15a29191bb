/** Sessions to files and back: rows, step state and policy state as they are, so that going on is as if nothing had been in between. */
import { FormatError } from "./formats/checkpoint.ts";
import type { RowRun } from "./kv/mark.ts";
import type { LoadedModel } from "./model.ts";
import type { Policy } from "./policies/policy.ts";
import { checkFacts, identityOf, type SessionFacts } from "./saved_session.ts";
import { SavedFile, writeSaved } from "./saved_file.ts";
import type { Tensor } from "./tensor.ts";
import type { OnProgress } from "./types.ts";

/** Most bytes of a piece; each has its checksum. */
const PIECE = 8 << 20;

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
  await writeSaved(path, facts, pieces(session.runs()));
}

async function* pieces(runs: readonly RowRun[]): AsyncGenerator<Uint8Array<ArrayBuffer>, void, undefined> {
  let piece = new Uint8Array(PIECE);
  let filled = 0;
  for (const { tensor, row, rows } of runs) {
    const [width, bytes] = rowOf(tensor);
    const most = Math.max(1, Math.floor(PIECE / 2 / bytes));
    for (let done = 0; done < rows; done += most) {
      const count = Math.min(most, rows - done);
      const data = await tensor.read((row + done) * width, count * width);
      const part = new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength);
      if (filled + part.length > piece.length) {
        yield piece.subarray(0, filled);
        piece = new Uint8Array(Math.max(PIECE, part.length));
        filled = 0;
      }
      piece.set(part, filled);
      filled += part.length;
    }
  }
  if (filled > 0) yield piece.subarray(0, filled);
}

/** Opens a saved file and holds it against a model and a policy. Errors: FormatError that says what does not fit. */
export async function openSaved(path: string, model: LoadedModel, policy: Policy): Promise<SavedFile<SessionFacts>> {
  const file = await SavedFile.open<SessionFacts>(path);
  try {
    checkFacts(path, file.facts, await identityOf(model, policy), model.shape.vocab, model.shape.layers);
    return file;
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** Fills a new session from a file. What was filled is void when this throws. */
export async function fill(file: SavedFile<SessionFacts>, session: Saveable, onProgress?: OnProgress): Promise<void> {
  const runs = session.runs();
  const total = runs.reduce((sum, { tensor, rows }) => sum + rows * rowOf(tensor)[1], 0);
  const found = file.pieces.reduce((sum, { bytes }) => sum + bytes, 0);
  if (found !== total) throw new FormatError(file.path, `it has ${found} bytes of rows and state, want ${total}`);
  let [at, row, done] = [0, 0, 0];
  for await (const piece of file.read()) {
    for (let taken = 0; taken < piece.length;) {
      const run = runs[at];
      const [width, bytes] = rowOf(run.tensor);
      const count = Math.min(run.rows - row, Math.floor((piece.length - taken) / bytes));
      if (run.rows > row && count === 0) throw new FormatError(file.path, "a piece ends within a row");
      if (count > 0) run.tensor.write(piece.subarray(taken, taken + count * bytes), (run.row + row) * width);
      taken += count * bytes;
      row += count;
      if (row === run.rows) [at, row] = [at + 1, 0];
    }
    done += piece.length;
    await runs[0].tensor.read(0, 1); // what was written has arrived: the queue holds one piece at most
    onProgress?.({ stage: "restore", done, total, unit: "bytes" });
  }
}

/** Elements and bytes of one row. */
function rowOf(tensor: Tensor): [width: number, bytes: number] {
  return tensor.shape.length === 1 ? [1, 4] : [tensor.shape.at(-1)!, tensor.rowBytes];
}
