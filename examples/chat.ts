// A conversation with the model's own template: what the session already holds is not read again, and it can be taken up later.
// bun run examples/chat.ts   |   deno run -A examples/chat.ts
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { load } from "recallkv";

using model = await load();
using chat = model.chat({ system: "Clara lives in Porto. The serial number for the copper lantern is 48213." });
for (const question of ["Where does Clara live?", "What is the serial number for the copper lantern?"]) {
  const answer = chat.send(question, { maxTokens: 40, temperature: 0.7, topP: 0.9, seed: 1 });
  process.stdout.write(`${question}\n  `);
  for await (const piece of answer) process.stdout.write(piece);
  const { stats } = await answer;
  console.log(`\n  (${stats.readTokens} tokens read of ${stats.promptTokens})`);
}

const file = join(tmpdir(), "talk.recall");
await chat.save(file);
using later = await model.restoreChat(file); // verified against the model, to the bit
console.log(`${later.messages.length} messages and ${later.session.length()} tokens came back`);
await rm(file);
