// Asks several questions about one document, reading a few of its KV rows at each step.
// bun run examples/long_document.ts   |   deno run -A examples/long_document.ts
import { clusterKV, load } from "recallkv";

using model = await load();
const { tokenizer } = model;
const control = (text: string) => tokenizer.encode(text, { special: true });

const filler = "The road wound on between the hedges, and nobody spoke for a long while. ".repeat(30);
const document = `${filler}The secret code for the amber falcon is 48213. ${filler}Clara lives in Porto. ${filler}`;
const questions = ["What is the secret code for the amber falcon?", "Where does Clara live?"];

using session = model.session({ kv: clusterKV({ budget: 160, tokensPerCluster: 16, exempt: [] }) });
await session.prefill([...control("<|bos|>"), ...tokenizer.encode(document)]);
const read = session.mark();
for (const question of questions) {
  const prompt = [...control("<|user|>"), ...tokenizer.encode(question), ...control("<|end|><|assistant|>")];
  await session.prefill(prompt, { query: "sparse" });
  const answer: number[] = [];
  for await (const { token } of session.decode({ maxTokens: 40 })) answer.push(token);
  console.log(question, "->", tokenizer.decode(answer).trim());
  session.rewind(read);
}
console.log(`${session.length()} tokens held, ${session.budget} rows of the index read per head and step`);
