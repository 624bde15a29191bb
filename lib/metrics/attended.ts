/** What attention read: rows per head and step, and the bytes they are. */
import type { Attended, Session } from "../session.ts";
import { rowBytes } from "../tensor.ts";

/** Rows read per head and step: means over steps and all layers, exempt ones included. */
export interface AttendedRows {
  /** Of the first rows. */
  readonly sink: number;
  /** Of the rows that were chosen. */
  readonly index: number;
  /** Of the last rows. */
  readonly tail: number;
  /** All of them. */
  readonly total: number;
}

/** Bytes of one row in every layer and KV head. */
export function bytesPerRow(session: Session): number {
  const { layers, kvHeads, headDim } = session.model.shape;
  return layers * kvHeads * 2 * rowBytes(session.kvDtype, headDim);
}

/** Means over steps, layers and KV heads of what was read between two readings. */
export function attendedRows(session: Session, before: Attended, after: Attended): AttendedRows {
  const { layers, kvHeads } = session.model.shape;
  const cells = Math.max(1, after.steps - before.steps) * layers * kvHeads;
  const mean = (source: "sink" | "index" | "tail") => (after[source] - before[source]) / cells;
  const rows = { sink: mean("sink"), index: mean("index"), tail: mean("tail") };
  return { ...rows, total: rows.sink + rows.index + rows.tail };
}
