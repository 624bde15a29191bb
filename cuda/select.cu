/* select.cu: what a step reads: the best of what was scored, and the rows they name. */
#include "fill.cuh"
#include "topk.cuh"

/* ---- the best of them ---- */

DEVICE int count_below(const uint4 &r, unsigned a, unsigned b, unsigned c, unsigned d) { return (r.x < a) + (r.y < b) + (r.z < c) + (r.w < d); }

/* Few candidates: each counts those that come before it, with eight threads; a block does it for the candidates [first, end). ranks[width
 * rounded up to 4]. */
DEVICE void order_by_counting(int *order, int k, const float *scores, int width, unsigned *ranks, int first, int end) {
  const int padded = (width + 3) / 4 * 4;
  int numbers = 0;
  for (int i = THREAD; i < padded; i += THREADS) {
    ranks[i] = i < width ? rank_of(scores[i]) : NO_RANK;
    numbers += ranks[i] != NO_RANK;
  }
  __shared__ int shared[32];
  numbers = block_sum_int(numbers, shared);
  for (int at = first * 8 + THREAD; at < (end * 8 + 31) / 32 * 32; at += THREADS) { /* whole warps */
    const int i = at / 8, share = at % 8;
    const unsigned mine = i < end ? ranks[i] : NO_RANK;
    int before = 0, j = 4 * share; /* of those in front an equal is before it too: rank < mine + 1, which is no rank's largest */
    for (; j + 3 < i; j += 32) before += count_below(*(const uint4 *)(ranks + j), mine + 1, mine + 1, mine + 1, mine + 1);
    if (j <= i && j < padded) {
      before += count_below(*(const uint4 *)(ranks + j), mine + (j < i), mine + (j + 1 < i), mine + (j + 2 < i), mine);
      j += 32;
    }
    for (; j < padded; j += 32) before += count_below(*(const uint4 *)(ranks + j), mine, mine, mine, mine);
    for (int d = 4; d > 0; d /= 2) before += __shfl_xor_sync(0xffffffffu, before, d);
    if (share == 0 && mine != NO_RANK && before < k) order[before] = i;
  }
  for (int i = numbers + THREAD; first == 0 && i < k; i += THREADS) order[i] = -1;
}

/* A row at a time, in runs of RKV_SORTED: which ids, in ascending order; then sorted by rank and id. grid: rows of scores, each `parts` blocks
 * where candidates are few; slots. */
KERNEL __launch_bounds__(1024) kernel_topk(const __grid_constant__ rkv_topk_args a, int parts) {
  begin();
  extern __shared__ unsigned long long sorted[]; /* [RKV_SORTED] rank, id */
  __shared__ unsigned digits[RKV_DIGITS];
  __shared__ int shared[34];
  const int n = a.order.shape[1], k = a.order.shape[2], width = a.scores.shape[2], row = blockIdx.x / parts, slot = blockIdx.y;
  if (!((const int *)a.active.data)[slot]) return;
  const float *scores = (const float *)a.scores.data + ((int64_t)slot * n + row) * width;
  int *order = (int *)a.order.data + ((int64_t)slot * n + row) * k, done = 0;
  place from = {0, -1};
  if (width <= RKV_SORTED) {
    const int share = (ceil_div(width, parts) + 3) / 4 * 4, first = blockIdx.x % parts * share;
    return order_by_counting(order, k, scores, width, (unsigned *)sorted, first, least(width, first + share));
  }
  while (done < k) {
    const int wanted = least(RKV_SORTED, k - done);
    int ties = 0;
    const unsigned last = wanted < width ? rank_of_kth(digits, shared, scores, width, from, wanted, &ties) : NO_RANK;
    const int found = take_best(scores, width, from, last, ties, shared, [&](int at, int id, unsigned rank) { sorted[at] = (unsigned long long)rank << 32 | (unsigned)id; });
    sort_pairs(sorted, found);
    for (int i = THREAD; i < found; i += THREADS) order[done + i] = (int)(unsigned)sorted[i];
    if (found == 0) break;
    from.rank = (unsigned)(sorted[found - 1] >> 32);
    from.id = (int)(unsigned)sorted[found - 1];
    done += found;
    __syncthreads();
  }
  for (int i = done + THREAD; i < k; i += THREADS) order[i] = -1;
}

/* ---- their rows. grid: rows of the index, slots ---- */

KERNEL __launch_bounds__(256) kernel_fill_budget(const __grid_constant__ rkv_fill_budget_args a) {
  begin();
  const int n = a.index.shape[1], budget = a.index.shape[2], k = a.order.shape[2], all = a.offsets.shape[2] - 1, row = blockIdx.x, slot = blockIdx.y;
  if (!((const int *)a.active.data)[slot]) return;
  const int kv_heads = a.offsets.shape[1];
  const int *order = (const int *)a.order.data + ((int64_t)slot * n + row) * k;
  const int *offsets = (const int *)a.offsets.data + ((int64_t)slot * kv_heads + row / (n / kv_heads)) * (all + 1);
  int *index = (int *)a.index.data + ((int64_t)slot * n + row) * budget;
  fill_rows(k, budget, [&](int i) {
    const int c = order[i];
    return (unsigned)c < (unsigned)all ? make_int2(offsets[c], most(0, offsets[c + 1] - offsets[c])) : make_int2(0, 0);
  }, [&](int i, int r) { index[i] = r; });
}

/* Whether a cluster fits depends on all before it: one thread decides, all write. */
KERNEL __launch_bounds__(256) kernel_fill_whole(const __grid_constant__ rkv_fill_whole_args a) {
  begin();
  __shared__ int clusters[256], sizes[256], starts[256], filled, has_ended;
  const int n = a.index.shape[1], budget = a.index.shape[2], k = a.order.shape[2], all = a.bias.shape[2], row = blockIdx.x, slot = blockIdx.y;
  if (!((const int *)a.active.data)[slot]) return;
  const int kv_heads = a.offsets.shape[1], count = most(0, least(all, ((const int *)a.count.data)[slot]));
  const int *order = (const int *)a.order.data + ((int64_t)slot * n + row) * k;
  const int *offsets = (const int *)a.offsets.data + ((int64_t)slot * kv_heads + row / (n / kv_heads)) * (all + 1);
  int *index = (int *)a.index.data + ((int64_t)slot * n + row) * budget;
  float *bias = (float *)a.bias.data + ((int64_t)slot * n + row) * all;
  for (int c = THREAD; c < all; c += THREADS) bias[c] = c < count && offsets[c + 1] > offsets[c] ? logf((float)(offsets[c + 1] - offsets[c])) : -INFINITE;
  if (THREAD == 0) filled = 0, has_ended = 0;
  __syncthreads();
  for (int base = 0; base < k && filled < budget && !has_ended; base += THREADS) {
    const int c = base + THREAD < k ? order[base + THREAD] : -1, is_cluster = (unsigned)c < (unsigned)all;
    clusters[THREAD] = is_cluster ? c : -1;
    sizes[THREAD] = is_cluster ? offsets[c + 1] - offsets[c] : 0;
    __syncthreads();
    if (THREAD == 0)
      for (int i = 0; i < THREADS; i++) {
        starts[i] = -1;
        if (clusters[i] < 0) has_ended = 1;
        if (has_ended || sizes[i] <= 0 || sizes[i] > budget - filled) continue;
        starts[i] = filled;
        filled += sizes[i];
      }
    __syncthreads();
    for (int i = WARP; i < THREADS; i += WARPS) {
      if (starts[i] < 0) continue;
      for (int r = LANE; r < sizes[i]; r += 32) index[starts[i] + r] = offsets[clusters[i]] + r;
      if (LANE == 0) bias[clusters[i]] = -INFINITE;
    }
    __syncthreads();
  }
  for (int i = filled + THREAD; i < budget; i += THREADS) index[i] = -1;
}

/* A warp per row. grid: rows / warps, heads, slots. */
KERNEL kernel_gather_rows(const __grid_constant__ rkv_gather_rows_args a) {
  begin();
  const int i = blockIdx.x * WARPS + WARP, budget = a.to.shape[2], width = a.to.shape[3], capacity = a.from.shape[2], dtype = a.from.dtype;
  if (i >= budget) return;
  const int64_t plane = (int64_t)blockIdx.z * a.to.shape[1] + blockIdx.y;
  const int row = ((const int *)a.index.data)[plane * budget + i], is_row = (unsigned)row < (unsigned)capacity;
  const char *from = (const char *)a.from.data + (plane * capacity + row) * row_bytes(dtype, width);
  float *to = (float *)a.to.data + (plane * budget + i) * width;
  for (int d = LANE; d < width; d += 32) to[d] = is_row ? at_row(dtype, from, d, width) : 0;
}

KERNEL kernel_set_tail(const __grid_constant__ rkv_rows_data kv, int sink, int width) {
  begin();
  for (int s = THREAD; s < kv.slots; s += THREADS)
    if (kv.active[s]) kv.tail_begin[s] = most(kv.tail_begin[s], most(sink, kv.row_end[s] - width));
}
