// A KV policy of one's own: pages of neighbouring rows, ranked by the mean of their keys. It runs on every device, replayed as it stands.
// bun run examples/policy.ts   |   deno run -A examples/policy.ts
import { clusterKV, full, generate, type Policy, slidingWindow } from "recallkv";
import { allocateClusters } from "recallkv/cluster";

const pageMeans = (page: number, budget: number): Policy => ({
  name: "pageMeans",
  sink: 4,
  budget,
  layer(rows, memory) {
    const pages = allocateClusters(memory, rows, { tokensPerCluster: page, shortest: page });
    const index = memory.scratch("i32", [rows.slots, rows.kvHeads, rows.budget]);
    return {
      due: (unbuilt) => Math.floor(unbuilt / page) * page,
      build(k, { slot, begin, rows: count, earlier }) {
        const first = earlier.reduce((sum, length) => sum + length, 0) / page;
        const run = Int32Array.of(slot, begin, count, first, count / page);
        const label = Int32Array.from({ length: count }, (_, i) => Math.floor(i / page));
        for (let h = 0; h < rows.kvHeads; h++) pages.labels.write(label, (slot * rows.kvHeads + h) * rows.capacity + begin);
        k.group(pages.order, pages.offsets, pages.labels, null, run);
        k.centroidMeans(pages.centroids, rows.keys, pages.order, pages.offsets, null, run);
        pages.count.write(Int32Array.of(first + count / page), slot);
      },
      select(k, q) {
        k.centroidScores(pages.scores, q, pages.centroids, null, pages.offsets, pages.count, rows.active, rows.scale, 0);
        k.topk(pages.ranked, pages.scores, rows.active);
        k.fillBudget(index, pages.ranked, pages.offsets, rows.active);
        return { index };
      },
    };
  },
});

const filler = "The road wound on between the hedges, and nobody spoke for a long while. ".repeat(20);
const prompt = `<|bos|>${filler}Clara lives in Porto. ${filler}<|user|>Where does Clara live?<|end|><|assistant|>`;
const clusters = clusterKV({ budget: 64, tokensPerCluster: 8, exempt: [], sink: 4, every: 32 });
for (const kv of [full(), slidingWindow({ window: 80 }), clusters, pageMeans(8, 64)]) {
  const { text, stats } = await generate(prompt, { kv, maxTokens: 20, special: true });
  console.log(`${kv.name.padEnd(13)} ${stats.attendedRows.total.toFixed(0).padStart(5)} rows a step   ${text.trim()}`);
}
