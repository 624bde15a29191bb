// The ops alone: cluster vectors of one's own, find the clusters a query is nearest to, and attend their members only.
// bun run examples/kernels.ts   |   deno run -A examples/kernels.ts
import { attend, centroidScores, fillBudget, gatherRows, kmeans, open, topk } from "recallkv/kernels";

const [rows, dim, clusters, budget] = [4000, 64, 50, 400];
let state = 1;
const uniform = () => (state = (state * 1103515245 + 12345) & 0x7fffffff) / 0x7fffffff - 0.5;
const centres = Array.from({ length: clusters }, () => Array.from({ length: dim }, () => 4 * uniform()));
const vectors = Float32Array.from({ length: rows * dim }, (_, i) => centres[Math.floor(i / dim) % clusters][i % dim] + uniform());
const query = Float32Array.from(centres[7]);

using device = await open("auto");
console.log(device.description);
const keys = device.from(vectors, [1, 1, rows, dim]); // [slots, kvHeads, rows, headDim]
const q = device.from(query, [1, 1, dim]); // [slots, heads, headDim]
const { labels, centroids, order, offsets } = kmeans(device, keys, { clusters });
const label = await labels.read();
console.log(`rows 7 and ${7 + clusters} have labels ${label[7]} and ${label[7 + clusters]}`);

// Rows by cluster, so that a cluster is a run of them; then the best clusters up to the budget.
const byCluster = gatherRows(device, keys, order);
const ranked = topk(device, centroidScores(device, q, centroids, { offsets }), clusters);
const index = fillBudget(device, ranked, offsets, budget);
const whole = await attend(device, q, keys, keys).attended.read();
const some = await attend(device, q, byCluster, byCluster, { index }).attended.read();
const error = Math.sqrt(whole.reduce((sum, x, i) => sum + (x - some[i]) ** 2, 0) / whole.reduce((sum, x) => sum + x * x, 0));
console.log(`attending ${budget} of ${rows} rows is off by ${(100 * error).toFixed(2)} %`);
