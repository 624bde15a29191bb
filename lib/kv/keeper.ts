/** What happens to the rows of a slot between steps: memory, segments, rows given back. It keeps host and device of one mind. */
import type { SessionLayer } from "../decoder.ts";
import { RecallError } from "../errors.ts";
import { count } from "../format.ts";
import type { Kernels } from "../kernels.ts";
import { everyRow, type Kept, type Place } from "../policies/policy.ts";
import { type SlotState, tailBegin } from "./slot.ts";
import type { StepState } from "./store.ts";

export class RowKeeper {
  constructor(private readonly k: Kernels, private readonly layers: readonly SessionLayer[], private readonly state: StepState) {}

  /**
   * Commits memory for `more` rows beyond those that a layer, or every layer, holds: all of it or nothing. Errors: RecallError `RKV_MEMORY`,
   * with what all of it would need and what there is.
   */
  commit(slot: number, held: SlotState, more: number, only?: number): void {
    const wanted = this.layers.flatMap(({ rows }, l) =>
      only === undefined || only === l ? [{ rows, end: held.layers[l].end, until: held.layers[l].end + more }] : []
    );
    const needed = wanted.reduce((sum, { rows, until }) => sum + rows.wanting(slot, until), 0);
    if (needed === 0) return;
    try {
      for (const { rows, until } of wanted) rows.commit(slot, until);
    } catch (error) {
      for (const { rows, end } of wanted) rows.release(slot, end);
      if (!(error instanceof RecallError) || error.code !== "RKV_MEMORY") throw error;
      const found = error.message.replace(/^Cannot [^:]*: /, "");
      throw new RecallError(
        "RKV_MEMORY",
        "commit",
        `Cannot hold ${count(more)} more tokens: their rows need ${count(needed)} bytes (${found})`,
      );
    }
  }

  /** Tells the device what the host knows of a slot's rows. */
  write(slot: number, held: SlotState): void {
    held.layers.forEach((layer, l) => {
      const { rows, sink } = this.layers[l];
      this.state.rowEnd.write(Int32Array.of(layer.end), l * rows.slots + slot);
      this.state.tailBegin.write(Int32Array.of(tailBegin(layer, sink)), l * rows.slots + slot);
    });
  }

  /** Builds every segment that is complete, of all layers or one. `ended`: the prompt has ended. */
  build(slot: number, held: SlotState, ended: boolean, only?: number): void {
    this.layers.forEach(({ policy, rows, sink }, l) => {
      if ((only ?? l) !== l || policy === everyRow || !policy.build || !policy.due) return;
      const layer = held.layers[l];
      for (;;) {
        const begin = tailBegin(layer, sink);
        const due = policy.due(Math.max(0, layer.end - begin), ended, layer.segments);
        if (due <= 0) return;
        policy.build(this.k, { slot, begin, rows: due, earlier: layer.segments });
        layer.segments.push(due);
        this.state.tailBegin.write(Int32Array.of(begin + due), l * rows.slots + slot);
      }
    });
  }

  /** A step has left one row more in every layer, unless the step itself dropped one. */
  stepped(held: SlotState): void {
    this.layers.forEach(({ policy }, l) => {
      const layer = held.layers[l];
      layer.end++;
      if (policy !== everyRow && policy.rowsAfterStep) layer.end = policy.rowsAfterStep(layer.end);
    });
  }

  /** Whether a layer's policy may give rows back. */
  givesBack(l: number): boolean {
    const { policy } = this.layers[l];
    return policy !== everyRow && policy.giveBack !== undefined;
  }

  /** Gives back what a layer's policy no longer holds; returns what it said to keep where something was given back. */
  giveBack(
    slot: number,
    held: SlotState,
    l: number,
    after: Place["after"],
    begin: number,
    prompt: number,
    generated = held.tokens.length - held.prompt,
  ): Kept | undefined {
    const { policy, rows } = this.layers[l];
    if (policy === everyRow || !policy.giveBack) return;
    const layer = held.layers[l];
    const kept = policy.giveBack(this.k, {
      slot,
      after,
      rows: layer.end,
      begin,
      prompt,
      generated,
    });
    if (!kept || kept.of === "deeper") return kept;
    this.k.compact(rows.handle, kept.also ?? null, kept.keep, slot, kept.count);
    rows.release(slot, kept.count);
    layer.end = kept.count;
    return kept;
  }
}
