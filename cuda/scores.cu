/* scores.cu: how much of attention each cluster or page would draw; and, in a recorded step, the clusters that are read. */
#include "blocks.cuh"
#include "common.cuh"

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

/* Sums of four numbers over the LANES lanes of a centroid; this lane gets number l * 4 / LANES of them. */
template <int LANES>
DEVICE float sum_of_four(const float v[4], int l) {
  const int upper = l & LANES / 2, odd = l & LANES / 4;
  float keep[2];
#pragma unroll
  for (int i = 0; i < 2; i++) keep[i] = (upper ? v[2 + i] : v[i]) + __shfl_xor_sync(0xffffffffu, upper ? v[i] : v[2 + i], LANES / 2);
  float sum = (odd ? keep[1] : keep[0]) + __shfl_xor_sync(0xffffffffu, odd ? keep[0] : keep[1], LANES / 4);
#pragma unroll
  for (int i = LANES / 8; i > 0; i /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, i);
  return sum;
}

/* The same for centroids whose logits fit into the shared memory of a cluster of blocks, each with a share of them: 16 channels of four queries
 * lie in a lane's registers, and LANES of them read a centroid, once. `put(g, c, logit)`: of query g with centroid c of the share. */
template <int LANES, class Put>
DEVICE void centroid_logits(const float *q, int queries, const float *centroids, const float *radius, float bound, const int *offsets, int begin_c, int end_c, int dim, Put put) {
  const int l = LANE % LANES, mine = l / (LANES / 4);
  for (int first = 0; first < queries; first += 4) {
    float4 query[4][4];
    float square[4];
#pragma unroll
    for (int g = 0; g < 4; g++) {
      square[g] = 0;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int d = (i * LANES + l) * 4;
        const float4 x = query[g][i] = first + g < queries && d < dim ? *(const float4 *)(q + (first + g) * (int64_t)dim + d) : make_float4(0, 0, 0, 0);
        square[g] = fmaf(x.w, x.w, fmaf(x.z, x.z, fmaf(x.y, x.y, fmaf(x.x, x.x, square[g]))));
      }
    }
    const float length = radius ? bound * sqrtf(sum_of_four<LANES>(square, l)) : 0;
    const int step = WARPS * 32 / LANES;
    float4 ahead[4]; /* of the next centroid */
    int members;
    const auto load = [&](int c) {
      members = c < end_c ? offsets[c + 1] - offsets[c] : 0;
#pragma unroll
      for (int i = 0; i < 4; i++) ahead[i] = c < end_c && (i * LANES + l) * 4 < dim ? *(const float4 *)(centroids + (int64_t)c * dim + (i * LANES + l) * 4) : make_float4(0, 0, 0, 0);
    };
    load(begin_c + THREAD / LANES);
    for (int base = begin_c; base < end_c; base += step) {
      const int c = base + THREAD / LANES, is_there = c < end_c, is_candidate = members > 0;
      float dot[4] = {0, 0, 0, 0};
      float4 x[4];
#pragma unroll
      for (int i = 0; i < 4; i++) x[i] = ahead[i];
      load(c + step);
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int g = 0; g < 4; g++) dot[g] = fmaf(x[i].w, query[g][i].w, fmaf(x[i].z, query[g][i].z, fmaf(x[i].y, query[g][i].y, fmaf(x[i].x, query[g][i].x, dot[g]))));
      float logit = sum_of_four<LANES>(dot, l);
      if (!is_there || l % (LANES / 4) != 0 || first + mine >= queries) continue;
      if (radius) logit = fmaf(length, radius[c], logit);
      put(first + mine, c - begin_c, is_candidate && logit == logit ? logit : -INFINITE);
    }
  }
}

/* The largest logit of a query over a share of the centroids, and the sum of all relative to it; a whole warp's. */
DEVICE float2 top_and_sum(const float *logits, int count, float scale) {
  float top = -INFINITE, sum = 0;
  for (int c = LANE; c < count; c += 32) top = fmaxf(top, logits[c] * scale);
  top = warp_max(top);
  for (int c = LANE; c < count; c += 32) sum += logits[c] == -INFINITE ? 0 : expf(logits[c] * scale - top);
  return make_float2(top, warp_sum(sum));
}
/* Of all shares: the largest, and one over the sum. `part(r)`: what top_and_sum says of share r. */
template <class Part>
DEVICE float2 top_and_inverse(int shares, Part part) {
  float top = -INFINITE, sum = 0;
  for (int r = 0; r < shares; r++) top = fmaxf(top, part(r).x);
  for (int r = 0; r < shares; r++)
    if (part(r).y > 0) sum = fmaf(part(r).y, expf(part(r).x - top), sum);
  return make_float2(top, 1 / sum);
}
/* A centroid's score: what it draws from each query; of query g its logit is logits[g * stride]. */
DEVICE float score_of_logits(const float *logits, int stride, int queries, float scale, const float2 *all) {
  float sum = 0;
  for (int g = 0; g < queries; g++) {
    const float x = logits[g * stride];
    sum += x == -INFINITE ? 0 : expf(x * scale - all[g].x) * all[g].y;
  }
  return sum;
}

template <int LANES>
DEVICE void score_centroids(float *scores, const float *q, int queries, const float *centroids, const float *radius, float bound, const int *offsets, int count, int dim,
                            int is_shared, float scale, float *logits /*[queries][share], then two for each query*/) {
  const int ranks = cluster_ranks(), share = ceil_div(count, ranks), begin_c = least(count, cluster_rank() * share), end_c = least(count, begin_c + share), mine = end_c - begin_c;
  centroid_logits<LANES>(q, queries, centroids, radius, bound, offsets, begin_c, end_c, dim, [&](int g, int c, float logit) { logits[g * mine + c] = logit; });
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

/* What a row of scores is made of. */
typedef struct { int row, slot, queries, count; const int *offsets; const float *centroids, *radius, *q; float *scores; } score_of;
DEVICE score_of score_at(const rkv_centroid_scores_args &a) {
  const int n = a.scores.shape[1], all = a.scores.shape[2], heads = a.q.shape[1], kv_heads = a.centroids.shape[1], dim = a.q.shape[2];
  const int row = blockIdx.x / cluster_ranks(), slot = blockIdx.y, queries = heads / n;
  const int64_t plane = (int64_t)slot * kv_heads + row / (n / kv_heads);
  return score_of{row, slot, queries, most(0, least(all, ((const int *)a.count.data)[slot])), (const int *)a.offsets.data + plane * (all + 1),
                  (const float *)a.centroids.data + plane * all * dim, a.radius.data ? (const float *)a.radius.data + plane * all : NULL,
                  (const float *)a.q.data + ((int64_t)slot * heads + row * queries) * dim, (float *)a.scores.data + ((int64_t)slot * n + row) * all};
}

DEVICE void clear_scores(const rkv_centroid_scores_args &a, const score_of &s) {
  for (int c = s.count + cluster_rank() * THREADS + THREAD; c < a.scores.shape[2]; c += cluster_ranks() * THREADS) s.scores[c] = -INFINITE;
}

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

/* Scores, order and rows at once: what topk and fill_budget make of the scores, of up to 128 channels. A block makes the logits of its share of
 * the clusters for all of them, so that they wait for each other once; each then knows every cluster's score and size, and one pass over them
 * tells how many clusters, and how many rows, come before one of its share. What will be read is asked for: centroids before the kernel in front
 * has ended; sink, tail (of `fetched`, or keys.data NULL) and the chosen rows for the attention that follows. The grid is that of the scores. */
KERNEL __launch_bounds__(512) kernel_choose(const __grid_constant__ rkv_centroid_scores_args a, const __grid_constant__ rkv_topk_args t, const __grid_constant__ rkv_fill_budget_args f,
                                            const __grid_constant__ rkv_rows_data fetched, int sink) {
  extern __shared__ __align__(16) unsigned rank[]; /* [clusters], size[clusters], both rounded up to 4; logits[ranks][queries][share] */
  __shared__ float2 parts[64 * 8], all[64];
  __shared__ int shared[32];
  const int is_active = ((const int *)a.active.data)[blockIdx.y]; /* written before the step, as counts of clusters are, and their sizes */
  if (!is_active) return;
  const score_of s = score_at(a);
  const int n = a.scores.shape[1], padded = (s.count + 3) / 4 * 4, dim = a.q.shape[2], k = t.order.shape[2], budget = f.index.shape[2];
  const int ranks = cluster_ranks(), share = ceil_div(s.count, ranks), begin_c = least(s.count, cluster_rank() * share), end_c = least(s.count, begin_c + share);
  unsigned *size = rank + padded;
  float *logits = (float *)(size + padded);
  for (int c = begin_c + THREAD * 4; c < end_c; c += 4 * THREADS) fetch_ahead(s.centroids + (int64_t)c * dim, least(4, end_c - c) * dim * 4);
  for (int c = THREAD; c < padded; c += THREADS) size[c] = c < s.count ? (unsigned)most(0, s.offsets[c + 1] - s.offsets[c]) : 0;
  cluster_arrive();
  begin();
  const int row_size = (int)row_bytes(fetched.keys.dtype, dim), held = fetched.keys.data ? fetched.row_end[s.slot] : 0;
  const char *plane = (const char *)(LANE == 0 ? fetched.keys : fetched.values).data + ((int64_t)s.slot * n + s.row) * fetched.capacity * row_size;
  const auto fetch_rows = [&](int first, int rows) { /* by two lanes: keys and values */
    if (LANE < 2 && first >= 0) fetch_ahead(plane + (int64_t)first * row_size, least(rows, held - first) * row_size);
  };
  if (held > 0 && cluster_rank() == 0 && WARP == 0) {
    fetch_rows(0, sink);
    fetch_rows(most(fetched.tail_begin[s.slot], sink), RKV_FETCHED);
  }
  cluster_wait(); /* all are there */
  float *mine = logits + cluster_rank() * s.queries * share;
  centroid_logits<8>(s.q, s.queries, s.centroids, s.radius, a.bound, s.offsets, begin_c, end_c, dim, [&](int g, int c, float logit) {
    for (int r = 0; r < ranks; r++) put_shared_of((unsigned *)mine + g * share + c, r, __float_as_uint(logit));
  });
  clear_scores(a, s);
  cluster_sync();
  for (int i = WARP; i < s.queries * ranks; i += WARPS) {
    const float2 part = top_and_sum(logits + (i % ranks * s.queries + i / ranks) * share, most(0, least(share, s.count - i % ranks * share)), a.scale);
    if (LANE == 0) parts[i] = part;
  }
  __syncthreads();
  for (int g = THREAD; g < s.queries; g += THREADS) all[g] = top_and_inverse(ranks, [&](int r) { return parts[g * ranks + r]; });
  __syncthreads();
  int numbers = 0;
  for (int c = THREAD; c < padded; c += THREADS) {
    const int r = c < s.count ? c / share : 0;
    const float score = size[c] > 0 ? score_of_logits(logits + r * s.queries * share + c - r * share, share, s.queries, a.scale, all) : -INFINITE;
    rank[c] = rank_of(score);
    numbers += rank[c] != NO_RANK;
    if (c >= begin_c && c < end_c) s.scores[c] = score;
  }
  numbers = block_sum_int(numbers, shared);
  const int last = least(k, numbers) - 1;
  int *order = (int *)t.order.data + ((int64_t)s.slot * n + s.row) * k, *index = (int *)f.index.data + ((int64_t)s.slot * n + s.row) * budget;
  for (int at = THREAD; at < ((end_c - begin_c) * 8 + 31) / 32 * 32; at += THREADS) { /* eight threads a cluster; whole warps */
    const int c = begin_c + at / 8;
    const unsigned own = c < end_c ? rank[c] : NO_RANK;
    int before = 0, start = 0;
    const auto count = [&](int is_before, unsigned rows) {
      before += is_before;
      start += is_before ? (int)rows : 0;
    };
    for (int j = 4 * (at % 8); j < padded; j += 32) { /* an equal one comes before if its number does */
      const uint4 r = *(const uint4 *)(rank + j), rows = *(const uint4 *)(size + j);
      const unsigned below = own + (j + 4 <= c);
      count(r.x < below, rows.x);
      count(r.y < below, rows.y);
      count(r.z < below, rows.z);
      count(r.w < below, rows.w);
    }
    for (int j = c / 4 * 4; at % 8 == 0 && j < c && j < padded; j++) count(rank[j] == own, size[j]); /* of its own four */
    for (int d = 4; d > 0; d /= 2) {
      before += __shfl_xor_sync(0xffffffffu, before, d);
      start += __shfl_xor_sync(0xffffffffu, start, d);
    }
    const int is_chosen = at % 8 == 0 && own != NO_RANK && before < k;
    if (is_chosen) order[before] = c;
    unsigned chosen = __ballot_sync(0xffffffffu, is_chosen && (start < budget || before == last));
    while (chosen) { /* a warp writes the rows of one after the other */
      const int lane = __ffs(chosen) - 1, whose = __shfl_sync(0xffffffffu, c, lane), from = __shfl_sync(0xffffffffu, start, lane);
      const int is_last = __shfl_sync(0xffffffffu, before, lane) == last, rows = (int)size[whose], first = s.offsets[whose];
      fetch_rows(first, least(rows, budget - from));
      for (int r = LANE; r < rows && from + r < budget; r += 32) index[from + r] = first + r;
      for (int i = from + rows + LANE; is_last && i < budget; i += 32) index[i] = -1;
      chosen &= chosen - 1;
    }
  }
  if (cluster_rank() == 0) {
    for (int i = numbers + THREAD; i < k; i += THREADS) order[i] = -1;
    for (int i = THREAD; last < 0 && i < budget; i += THREADS) index[i] = -1;
  }
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
