/** Asking about a document that a session has read, in the form that the shipped models know. */
import type { LoadedModel } from "../model.ts";
import type { Session } from "../session.ts";

/** Most tokens of an answer. */
const ANSWER = 40;

/** Control tokens, spelled out. */
export function control({ tokenizer }: LoadedModel, text: string): number[] {
  return tokenizer.encode(text, { special: true });
}

export function documentTokens(model: LoadedModel, text: string): number[] {
  return [...control(model, "<|bos|>"), ...model.tokenizer.encode(text)];
}

export function questionTokens(model: LoadedModel, question: string): number[] {
  return [...control(model, "<|user|>"), ...model.tokenizer.encode(question), ...control(model, "<|end|><|assistant|>")];
}

/** Decodes an answer after the session has read the question; `tokens` has its end token too. */
export async function answer(model: LoadedModel, session: Session): Promise<{ text: string; tokens: number[]; seconds: number }> {
  const began = performance.now();
  const tokens: number[] = [];
  for await (const { token } of session.decode({ maxTokens: ANSWER })) tokens.push(token);
  const seconds = (performance.now() - began) / 1000;
  return { text: model.tokenizer.decode(tokens).trim(), tokens, seconds };
}
