/** What the host knows of a slot without asking the device: how far each layer is, and which token waits. */

/** One layer of a slot. */
export interface LayerRows {
  /** Rows held. */
  end: number;
  /** Rows of each built segment, oldest first; they follow the sink rows. */
  segments: number[];
}

export interface SlotState {
  /** Tokens whose rows are held, oldest first. */
  tokens: number[];
  /** How many of them were held when the last prompt ended; those after it were generated. */
  prompt: number;
  /** The same, counting prompts that were read step by step too: what was said since. */
  answer: number;
  /** How many leading tokens were read as prompts, every row attended: a longer text that begins with them would hold the same rows. */
  dense: number;
  /** The token that the last step chose and that was not fed yet; its number is known once it was yielded. */
  next: { token: number | null } | null;
  layers: LayerRows[];
}

export function emptySlot(layers: number): SlotState {
  return {
    tokens: [],
    prompt: 0,
    answer: 0,
    dense: 0,
    next: null,
    layers: Array.from({ length: layers }, () => ({ end: 0, segments: [] })),
  };
}

export function cloneSlot(slot: SlotState): SlotState {
  return {
    tokens: [...slot.tokens],
    prompt: slot.prompt,
    answer: slot.answer,
    dense: slot.dense,
    next: slot.next && { ...slot.next },
    layers: slot.layers.map(({ end, segments }) => ({ end, segments: [...segments] })),
  };
}

/** First row of the tail: what was not built. */
export function tailBegin(layer: LayerRows, sink: number): number {
  return sink + layer.segments.reduce((sum, rows) => sum + rows, 0);
}
