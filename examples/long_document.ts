// Asks several questions about one long document, reading a few of its KV rows at each step; reads it once, for this run and the next.
// bun run examples/long_document.ts   |   deno run -A examples/long_document.ts
import { readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { clusterKV, load } from "recallkv";

const prose: string[][] = JSON.parse(await readFile(new URL("../models/mini/prose.json", import.meta.url), "utf8"));
const sentences = prose[0].slice(0, 160);
sentences.splice(40, 0, "The secret code for the amber falcon is 48213.");
sentences.splice(120, 0, "Clara lives in Porto.");
const questions = ["What is the secret code for the amber falcon?", "Where does Clara live?"];

using model = await load();
const { tokenizer } = model;
const control = (text: string) => tokenizer.encode(text, { special: true });
const kv = () => clusterKV({ budget: 256, tokensPerCluster: 16, bound: 0.3, exempt: [] });
const file = join(tmpdir(), "document.recall");
{
  using session = model.session({ kv: kv() });
  await session.prefill([...control("<|bos|>"), ...tokenizer.encode(sentences.join(" "))]);
  await session.save(file);
}
using session = await model.restore(file, { kv: kv() }); // as if it had been read here, to the bit
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
await rm(file);
