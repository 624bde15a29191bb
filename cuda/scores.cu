/* scores.cu: how much of attention each cluster or page would draw; and, in a recorded step, the clusters that are read. */
#include "choice.cuh"

/* ---- scores (+)= softmax over candidates of scale * logit, summed over the queries of a group; or the logits of one query. A block has a row
 * of scores, a warp a candidate. The logit is made twice, once for the softmax's sum and once for the score: no buffer grows with the count.
 * `logit(g, c)` is a whole warp's; what is no number counts as -inf. ---- */

template <class Logit>
DEVICE void score_row(float *scores, int count, int queries, int is_shared, float scale, Logit logit) {
  __shared__ float tops[32], sums[32];
  for (int g = 0; g < queries; g++) {
    float top = -INFINITE, sum = 0;
    if (!is_shared) {
      for (int c = WARP; c < count; c += WARPS) {
        const float x = logit(g, c);
        if (LANE == 0) scores[c] = x;
      }
      continue;
    }
    for (int c = WARP; c < count; c += WARPS) {
      const float x = logit(g, c) * scale;
      if (!(x > -INFINITE)) continue;
      const float now = fmaxf(top, x);
      sum = fmaf(sum, top == -INFINITE ? 0 : expf(top - now), expf(x - now));
      top = now;
    }
    __syncthreads();
    if (LANE == 0) tops[WARP] = top, sums[WARP] = sum;
    __syncthreads();
    float all = -INFINITE, total = 0;
    for (int w = 0; w < WARPS; w++) all = fmaxf(all, tops[w]);
    for (int w = 0; w < WARPS; w++)
      if (sums[w] > 0) total = fmaf(sums[w], expf(tops[w] - all), total);
    const float inverse = 1 / total;
    for (int c = WARP; c < count; c += WARPS) {
      const float x = logit(g, c) * scale, share = x > -INFINITE ? expf(x - all) * inverse : 0;
      if (LANE == 0) scores[c] = g > 0 ? scores[c] + share : share;
    }
  }
}

template <int LANES>
DEVICE void score_centroids(float *scores, const float *q, int queries, const float *centroids, const float *radius, float bound, const int *offsets, int count, int dim,
                            int is_shared, float scale, float *logits /*[queries][share], then two for each query*/) {
  const int ranks = cluster_ranks(), share = ceil_div(count, ranks), begin_c = least(count, cluster_rank() * share), end_c = least(count, begin_c + share), mine = end_c - begin_c;
  centroid_logits<LANES>(q, queries, [&](int, int c, int d) { return *(const float4 *)(centroids + (int64_t)c * dim + d); }, radius, bound, offsets, begin_c, end_c, dim,
                         [&](int g, int c, float logit) { logits[g * mine + c - begin_c] = logit; });
  __syncthreads();
  if (!is_shared) {
    for (int c = THREAD; c < mine; c += THREADS) scores[begin_c + c] = logits[c]; /* one query a row */
    return;
  }
  float *tops = logits + queries * share; /* at the same place in each block */
  for (int g = WARP; g < queries; g += WARPS) {
    const float2 part = top_and_sum(logits + g * mine, mine, scale);
    if (LANE == 0) tops[2 * g] = part.x, tops[2 * g + 1] = part.y;
  }
  cluster_sync();
  __shared__ float2 all[64];
  for (int g = THREAD; g < queries; g += THREADS) all[g] = top_and_inverse(ranks, [&](int r) { return make_float2(shared_of(tops + 2 * g, r), shared_of(tops + 2 * g + 1, r)); });
  cluster_arrive();
  __syncthreads();
  for (int c = THREAD; c < mine; c += THREADS) {
    const int is_candidate = offsets[begin_c + c + 1] > offsets[begin_c + c];
    scores[begin_c + c] = is_candidate ? score_of_logits(logits + c, mine, queries, scale, all) : -INFINITE;
  }
  cluster_wait(); /* nobody is gone before all have read */
}

DEVICE float number_or_least(float x) { return x == x ? x : -INFINITE; }

/* grid: rows of scores, each a cluster; slots. `room`: floats of shared memory. */
KERNEL __launch_bounds__(512) kernel_centroid_scores(const __grid_constant__ rkv_centroid_scores_args a, int room) {
  extern __shared__ float logits[]; /* [room] */
  begin();
  if (!((const int *)a.active.data)[blockIdx.y]) return;
  const score_of s = score_at(a);
  const int dim = a.q.shape[2], is_shared = a.scores.shape[1] == a.centroids.shape[1];
  int lengths_of = -1;
  float length = 0;
  if (room > 0 && dim <= 128) score_centroids<8>(s.scores, s.q, s.queries, s.centroids, s.radius, a.bound, s.offsets, s.count, dim, is_shared, a.scale, logits);
  else if (room > 0) score_centroids<32>(s.scores, s.q, s.queries, s.centroids, s.radius, a.bound, s.offsets, s.count, dim, is_shared, a.scale, logits);
  else score_row(s.scores, s.count, s.queries, is_shared, a.scale, [&](int g, int c) {
    if (s.offsets[c + 1] <= s.offsets[c]) return -INFINITE;
    const float *query = s.q + (int64_t)g * dim;
    float x = warp_dot(query, RKV_F32, s.centroids + (int64_t)c * dim, dim);
    if (s.radius) {
      if (lengths_of != g) length = a.bound * sqrtf(warp_dot(query, RKV_F32, query, dim)), lengths_of = g;
      x = fmaf(length, s.radius[c], x);
    }
    return number_or_least(x);
  });
  if (room == 0) {
    __syncthreads();
    for (int c = THREAD; c < s.count; c += THREADS)
      if (s.offsets[c + 1] <= s.offsets[c]) s.scores[c] = -INFINITE;
  }
  clear_scores(a, s);
}

/* Scores, order and rows at once: what topk and fill_budget make of the scores, of up to 128 channels and with `ranks` blocks a row of scores. */
KERNEL __launch_bounds__(512) kernel_choose(const __grid_constant__ rkv_centroid_scores_args a, const __grid_constant__ rkv_topk_args t, const __grid_constant__ rkv_fill_budget_args f) {
  extern __shared__ __align__(16) int room[];
  __shared__ float2 parts[64 * 8], all[64];
  __shared__ int shared[48];
  const int dim = a.q.shape[2], budget = f.index.shape[2];
  if (!((const int *)a.active.data)[blockIdx.y]) return; /* written before the step */
  const score_of s = score_at(a);
  const choice c = choice_of(s, cluster_ranks(), room);
  begin_choice(c, s);
  for (int i = c.begin + THREAD * 4; i < c.end; i += 4 * THREADS) fetch_ahead(s.centroids + (int64_t)i * dim, least(4, c.end - i) * dim * 4);
  __syncthreads();
  cluster_arrive();
  begin();
  cluster_wait(); /* all are there */
  centroid_logits<8>(s.q, s.queries, [&](int, int i, int d) { return *(const float4 *)(s.centroids + (int64_t)i * dim + d); }, s.radius, a.bound, c.offsets, c.begin, c.end, dim,
                     [&](int g, int i, float logit) { put_logit(c, g, i, logit); });
  clear_scores(a, s);
  cluster_sync();
  int *index = (int *)f.index.data + ((int64_t)s.slot * a.scores.shape[1] + s.row) * budget;
  choose_rows(c, s, a.scale, t, f, parts, all, shared, [&](int i, int row) {
    if (cluster_rank() == 0) index[i] = row;
  });
}

/* Pages that neither sink nor tail reaches into. max(q m, q M) = min(q, 0) m + max(q, 0) M. */
KERNEL __launch_bounds__(1024) kernel_page_scores(const __grid_constant__ rkv_page_scores_args a, const __grid_constant__ rkv_rows_data kv) {
  begin();
  const int n = a.scores.shape[1], all = a.scores.shape[2], heads = a.q.shape[1], dim = kv.head_dim, row = blockIdx.x, slot = blockIdx.y, queries = heads / n;
  if (!kv.active[slot]) return;
  const int first = ceil_div(a.sink, a.page), end = least(all, least(kv.tail_begin[slot], kv.row_end[slot]) / a.page), dtype = a.bounds.dtype;
  const int64_t plane = (int64_t)slot * kv.kv_heads + row / (n / kv.kv_heads), bytes = row_bytes(dtype, dim);
  const char *bounds = (const char *)a.bounds.data + (plane * all + first) * 2 * bytes;
  const float *q = (const float *)a.q.data + ((int64_t)slot * heads + row * queries) * dim;
  float *scores = (float *)a.scores.data + ((int64_t)slot * n + row) * all;
  score_row(scores + first, most(0, end - first), queries, n == kv.kv_heads, a.scale, [&](int g, int p) {
    const char *low = bounds + (int64_t)p * 2 * bytes;
    float sum = 0;
    for (int d = LANE; d < dim; d += 32) {
      const float x = q[(int64_t)g * dim + d];
      sum = fmaf(x > 0 ? 0 : x, raw_at(dtype, low, d), sum);
      sum = fmaf(x > 0 ? x : 0, raw_at(dtype, low + bytes, d), sum);
    }
    return number_or_least(warp_sum(sum));
  });
  __syncthreads();
  for (int p = THREAD; p < all; p += THREADS)
    if (p < first || p >= end) scores[p] = -INFINITE;
}

/* grid: pages touched, heads. */
KERNEL kernel_page_bounds(const __grid_constant__ rkv_page_bounds_args a, const __grid_constant__ rkv_rows_data kv) {
  begin();
  const int p = a.begin / a.page + blockIdx.x, head = blockIdx.y, dim = kv.head_dim, dtype = kv.keys.dtype, begin = p * a.page;
  const int count = least(a.page, kv.row_end[a.slot] - begin);
  if (p >= a.bounds.shape[2] || count <= 0) return;
  const int64_t plane = (int64_t)a.slot * kv.kv_heads + head, bytes = row_bytes(dtype, dim), to_bytes = row_bytes(a.bounds.dtype, dim);
  const char *keys = (const char *)kv.keys.data + (plane * kv.capacity + begin) * bytes;
  char *to = (char *)a.bounds.data + (plane * a.bounds.shape[2] + p) * 2 * to_bytes;
  for (int d = THREAD; d < dim; d += THREADS) {
    float low = INFINITE, high = -INFINITE;
    for (int i = 0; i < count; i++) {
      const float x = at_row(dtype, keys + i * bytes, d, dim);
      low = x < low ? x : low;
      high = x > high ? x : high;
    }
    put_at(a.bounds.dtype, to, d, low);
    put_at(a.bounds.dtype, to + to_bytes, d, high);
  }
}
