/** Errors of recallkv. TypeError for a wrong kind and RangeError for a wrong value are the language's own. */

/** What native code, memory or the state of a session refuses. The message says the action, what was found and what was wanted. */
export class RecallError extends Error {
  /** "RecallError". */
  override readonly name = "RecallError";

  /** `code`: the library's word for it, as "RKV_MEMORY"; `op`: what was asked for. */
  constructor(readonly code: string, readonly op: string, sentence: string) {
    super(sentence);
  }
}
