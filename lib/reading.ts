/** How a session reads: a prompt in chunks or token by token, with what cuts it short and what may happen in between. */
import type { SessionRoom } from "./session_room.ts";
import type { OnProgress } from "./types.ts";

/** One text that a slot is to read. */
export interface Reading {
  readonly room: SessionRoom;
  readonly slot: number;
  readonly tokens: readonly number[];
  readonly onProgress?: OnProgress;
  /** Called between blocks, with nothing of this prompt left on the device. */
  readonly between?: () => Promise<void>;
}

/** Reads in chunks, every row attended. False when the device was told to stop. */
export async function readPrompt({ room, slot, tokens, onProgress, between }: Reading): Promise<boolean> {
  const k = room.device.kernels;
  const held = room.held[slot];
  const isDense = held.dense === held.tokens.length;
  const { last, finished } = await room.prefill.read({ slot, held, tokens, onProgress, between });
  if (!finished) return false;
  k.copy(room.step.x, slot, room.block.x, last, 1);
  k.head(room.logits, room.step.x, room.model.weights.ends, null, room.step.work, slot, 1);
  room.state.position.write(Int32Array.of(held.tokens.length), slot);
  held.next = { token: null };
  if (isDense) held.dense = held.tokens.length;
  return await room.arena.fence();
}

/** Token by token through the policy's own reading. */
export async function feed({ room, slot, tokens, onProgress }: Reading): Promise<boolean> {
  const held = room.held[slot];
  let previous = Promise.resolve(true);
  room.state.position.write(Int32Array.of(held.tokens.length), slot);
  for (let i = 0; i < tokens.length; i++) {
    room.state.token.write(Int32Array.of(tokens[i]), slot);
    held.next = { token: tokens[i] };
    room.stepSlots([slot], room.chosen);
    if (i % 32 < 31 && i < tokens.length - 1) continue;
    const fence = room.arena.fence();
    fence.catch(() => {});
    if (!(await previous)) return await fence && false;
    previous = fence;
    onProgress?.({ stage: "prefill", done: i + 1, total: tokens.length, unit: "tokens" });
  }
  return await previous;
}

/**
 * Runs work that `signal` may cut short; true when it ran to its end. Afterwards nothing of it is on the device any more. `spare` runs work
 * in between that the signal must not cut: it waits until that has ended.
 */
export async function cancellable(
  room: SessionRoom,
  signal: AbortSignal | undefined,
  work: (spare: (other: () => Promise<void>) => Promise<void>) => Promise<boolean>,
): Promise<boolean> {
  let isSparing = false;
  const cancel = () => {
    if (!isSparing) room.arena.cancel(true);
  };
  const spare = async (other: () => Promise<void>) => {
    isSparing = true;
    try {
      await other();
    } finally {
      isSparing = false;
      if (signal?.aborted) cancel();
    }
  };
  signal?.addEventListener("abort", cancel, { once: true });
  try {
    return await work(spare);
  } finally {
    signal?.removeEventListener("abort", cancel);
    if (signal?.aborted) {
      await room.arena.fence().catch(() => {});
      room.arena.cancel(false);
    }
  }
}

/** How many tokens two texts begin with alike. */
export function sharedTokens(a: readonly number[], b: readonly number[]): number {
  const most = Math.min(a.length, b.length);
  for (let i = 0; i < most; i++) if (a[i] !== b[i]) return i;
  return most;
}
