/** How a session decodes: step by step, where that is worth it one step ahead of the caller. */
import { RecallError } from "./errors.ts";
import { process } from "./sampling.ts";
import type { DecodedToken, DecodeOptions } from "./session_options.ts";
import type { SessionRoom } from "./session_room.ts";

/** What `Session.decode` was asked for. */
export interface Decoding extends Pick<DecodeOptions, "signal" | "onLogits"> {
  readonly room: SessionRoom;
  readonly slots: readonly number[];
  /** How many of the likeliest tokens each slot wants told. */
  readonly asks: readonly number[];
  readonly maxTokens: number;
  readonly stop: readonly number[];
  /** Let the device read a token before the host knows its number: it then has work while the news travels. */
  readonly ahead: boolean;
}

/**
 * Yields the tokens of each step. A token that was yielded before is fed first: what comes next is its successor. Where none was, it is chosen
 * from the logits. A token is read ahead when another one will be wanted, whatever it is: it belongs to the text in any case, and what was
 * chosen after it is chosen again, alike, by whoever goes on.
 */
export async function* decodeSteps(decoding: Decoding): AsyncGenerator<DecodedToken[], void, undefined> {
  const { room, slots, asks, maxTokens, signal, stop, onLogits, ahead } = decoding;
  const fits = (slot: number) => room.held[slot].tokens.length < room.capacity;
  let running = [...slots];
  let coming: ReturnType<typeof news> | undefined; // of the step that was begun ahead
  try {
    for (let yielded = 1; running.length > 0 && yielded <= maxTokens; yielded++) {
      signal?.throwIfAborted();
      if (!coming) await begin(room, running, onLogits);
      const chosen = coming ?? news(room, asks);
      coming = undefined;
      const isAhead = ahead && yielded < maxTokens && running.every(fits) && room.makeRoom(running);
      if (isAhead) {
        room.stepSlots(running, room.chosen, true);
        coming = news(room, asks);
      }
      const { tokens, logprobs, likeliest } = await chosen;
      for (const slot of running) room.tell(slot, tokens[slot], isAhead);
      const unsound = running.find((slot) => tokens[slot] < 0);
      if (unsound !== undefined) {
        throw new RecallError("RKV_NAN", "decode", `Cannot decode: no logit of slot ${unsound} is a number, want sound weights`);
      }
      yield running.map((slot) => ({
        slot,
        token: tokens[slot],
        logprob: logprobs[slot],
        ...(likeliest && { likeliest: likeliest[slot] }),
      }));
      running = running.filter((slot) => !stop.includes(tokens[slot]) && (isAhead || fits(slot)));
    }
  } finally {
    await coming?.catch(() => {}); // nothing runs on
  }
}

/** Begins a step: feeds what waits to be fed, and chooses. */
async function begin(room: SessionRoom, running: readonly number[], onLogits: DecodeOptions["onLogits"]): Promise<void> {
  const isFed = (slot: number) => room.held[slot].next!.token !== null;
  const unchosen = onLogits ? running : running.filter((slot) => !isFed(slot));
  const fed = running.filter(isFed);
  if (fed.length > 0) room.stepSlots(fed, onLogits ? room.toLogits : room.chosen);
  if (onLogits) await process(room.logits, running, (slot) => room.held[slot].tokens.length, onLogits);
  for (const slot of unchosen) room.choose(null, slot, 1);
}

/** What the step that was enqueued last has chosen. A failure is told to whoever awaits it, if anybody does. */
function news({ state, sampler }: SessionRoom, asks: readonly number[]) {
  const likeliest = asks.some((wanted) => wanted > 0) ? sampler.likeliest(asks) : undefined;
  const told = Promise.all([state.token.read(), state.logprob.read(), likeliest])
    .then(([tokens, logprobs, likeliest]) => ({ tokens, logprobs, likeliest }));
  told.catch(() => {});
  return told;
}
