// A KV policy of one's own: every n-th row of the past, beside sinks and a window. It runs on every device, replayed as it stands.
// bun run examples/policy.ts   |   deno run -A examples/policy.ts
import { clusterKV, full, generate, type Policy } from "recallkv";

const everyNth = (n: number, budget: number, window = 64): Policy => ({
  name: "everyNth",
  sink: 4,
  budget,
  layer(rows, memory) {
    const index = memory.tensor("i32", [rows.slots, rows.kvHeads, rows.budget]);
    const chosen = Int32Array.from({ length: index.elements }, (_, i) => 4 + (i % rows.budget) * n);
    index.write(chosen); // rows that do not exist yet are skipped until they do
    return {
      select(k) {
        k.setTail(rows.handle, 4, window);
        return { index };
      },
    };
  },
});

const prompt = "It was a bright cold morning, and the whole village had come down to the harbour to see the ship come in. ";
for (const kv of [full(), clusterKV({ budget: 32, tokensPerCluster: 8, every: 32 }), everyNth(4, 32, 32)]) {
  const { text, stats } = await generate(prompt, { kv, maxTokens: 80, capacity: 256 });
  console.log(`${kv.name}: ${stats.attendedRows.total.toFixed(0)} rows a step\n  ${text.replaceAll("\n", " ")}\n`);
}
