// Asks several questions about one long document, reading a few of its KV rows at each step.
// bun run examples/long_document.ts   |   deno run -A examples/long_document.ts
import { readFile } from "node:fs/promises";
import { clusterKV, load } from "recallkv";

const prose: string[][] = JSON.parse(await readFile(new URL("../models/mini/prose.json", import.meta.url), "utf8"));
const sentences = prose[0].slice(0, 160);
sentences.splice(40, 0, "The secret code for the amber falcon is 48213.");
sentences.splice(120, 0, "Clara lives in Porto.");
const questions = ["What is the secret code for the amber falcon?", "Where does Clara live?"];

using model = await load();
const { tokenizer } = model;
const control = (text: string) => tokenizer.encode(text, { special: true });
const document = [...control("<|bos|>"), ...tokenizer.encode(sentences.join(" "))];

using session = model.session({ kv: clusterKV({ budget: 256, tokensPerCluster: 16, bound: 0.3, exempt: [] }) });
await session.prefill(document);
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
