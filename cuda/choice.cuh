/* choice.cuh: which clusters a step reads, by blocks that share a row of scores: logits of the centroids, the softmax over them, the order, and
 * the rows that a budget holds. */
#ifndef RKV_CHOICE_CUH
#define RKV_CHOICE_CUH
#include "blocks.cuh"
#include "fill.cuh"

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

/* Logits of the centroids [begin_c, end_c): 16 channels of four queries lie in a lane's registers, and LANES of them read a centroid, once; the
 * block's threads take them in turn, one turn after the other. `at(turn, c, d)`: four channels of centroid c. `put(g, c, logit)`: of query g. */
template <int LANES, class At, class Put>
DEVICE void centroid_logits(const float *q, int queries, At at, const float *radius, float bound, const int *offsets, int begin_c, int end_c, int dim, Put put) {
  const int l = LANE % LANES, mine = l / (LANES / 4);
  for (int first = 0; first < queries; first += 4) {
    float4 query[4][4];
    float length = 0;
#pragma unroll
    for (int i = 0; i < 16; i++) {
      const int g = i / 4, d = (i % 4 * LANES + l) * 4;
      query[g][i % 4] = first + g < queries && d < dim ? *(const float4 *)(q + (first + g) * (int64_t)dim + d) : make_float4(0, 0, 0, 0);
    }
    if (radius) {
      float square[4] = {0, 0, 0, 0};
#pragma unroll
      for (int i = 0; i < 16; i++) {
        const float4 x = query[i / 4][i % 4];
        square[i / 4] = fmaf(x.w, x.w, fmaf(x.z, x.z, fmaf(x.y, x.y, fmaf(x.x, x.x, square[i / 4]))));
      }
      length = bound * sqrtf(sum_of_four<LANES>(square, l));
    }
    const int step = WARPS * 32 / LANES;
    float4 ahead[4]; /* of the next centroid */
    int members;
    const auto load = [&](int turn, int c) {
      members = c < end_c ? offsets[c + 1] - offsets[c] : 0;
#pragma unroll
      for (int i = 0; i < 4; i++) ahead[i] = c < end_c && (i * LANES + l) * 4 < dim ? at(turn, c, (i * LANES + l) * 4) : make_float4(0, 0, 0, 0);
    };
    load(0, begin_c + THREAD / LANES);
    for (int base = begin_c, turn = 0; base < end_c; base += step, turn++) {
      const int c = base + THREAD / LANES, is_there = c < end_c, is_candidate = members > 0;
      float dot[4] = {0, 0, 0, 0};
      float4 x[4];
#pragma unroll
      for (int i = 0; i < 4; i++) x[i] = ahead[i];
      load(turn + 1, c + step);
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int g = 0; g < 4; g++) dot[g] = fmaf(x[i].w, query[g][i].w, fmaf(x[i].z, query[g][i].z, fmaf(x[i].y, query[g][i].y, fmaf(x[i].x, query[g][i].x, dot[g]))));
      float logit = sum_of_four<LANES>(dot, l);
      if (!is_there || l % (LANES / 4) != 0 || first + mine >= queries) continue;
      if (radius) logit = fmaf(length, radius[c], logit);
      put(first + mine, c, is_candidate && logit == logit ? logit : -INFINITE);
    }
  }
}

/* The largest logit of a query over a share of the centroids, and the sum of all relative to it; a whole warp's. Four loads go out together: the first
 * time that code runs it comes from far away, so there is little of it. */
DEVICE float2 top_and_sum(const float *logits, int count, float scale) {
  float top = -INFINITE, sum = 0;
#pragma unroll 1
  for (int base = LANE; base < count; base += 128)
#pragma unroll
    for (int i = 0; i < 4; i++) top = fmaxf(top, base + 32 * i < count ? logits[base + 32 * i] * scale : -INFINITE);
  top = warp_max(top);
#pragma unroll 1
  for (int base = LANE; base < count; base += 128)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float x = base + 32 * i < count ? logits[base + 32 * i] : -INFINITE;
      sum += x == -INFINITE ? 0 : expf(x * scale - top);
    }
  return make_float2(top, warp_sum(sum));
}
/* Of all shares: the largest, and one over the sum. `part(r)`: what top_and_sum says of share r. */
template <class Part>
DEVICE float2 top_and_inverse(int shares, Part part) {
  float top = -INFINITE, sum = 0;
#pragma unroll 1
  for (int r = 0; r < shares; r++) top = fmaxf(top, part(r).x);
#pragma unroll 1
  for (int r = 0; r < shares; r++)
    if (part(r).y > 0) sum = fmaf(part(r).y, expf(part(r).x - top), sum);
  return make_float2(top, 1 / sum);
}
/* A centroid's score: what it draws from each query; of query g its logit is logits[g * stride]. */
DEVICE float score_of_logits(const float *logits, int stride, int queries, float scale, const float2 *all) {
  float sum = 0;
#pragma unroll 4
  for (int g = 0; g < queries; g++) {
    const float x = logits[g * stride];
    sum += x == -INFINITE ? 0 : expf(x * scale - all[g].x) * all[g].y;
  }
  return sum;
}

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
#pragma unroll 1
  for (int c = s.count + cluster_rank() * THREADS + THREAD; c < a.scores.shape[2]; c += cluster_ranks() * THREADS) s.scores[c] = -INFINITE;
}

/* What a choice is made with, in shared memory: ends[RKV_BUCKETS]; offsets[clusters + 1]; for each cluster, `padded` of them, its rank, the clusters in
 * their order, and logits[queries][padded], later the clusters bucket by bucket. This block makes logits of the clusters [begin, end). slices, a power
 * of two: of the softmax's sums. */
typedef struct { int *ends, *offsets, *sorted, *members; unsigned *rank; float *logits; int count, padded, slices, begin, end; } choice;

DEVICE choice choice_of(const score_of &s, int slices, int *room) {
  const int padded = (s.count + 3) / 4 * 4, ranks = cluster_ranks(), own = (s.count + ranks - 1) / ranks, begin = least(s.count, cluster_rank() * own);
  int *offsets = room + RKV_BUCKETS, *rank = offsets + padded + 4, *sorted = rank + padded, *logits = sorted + padded;
  return choice{room, offsets, sorted, logits, (unsigned *)rank, (float *)logits, s.count, padded, slices, begin, least(s.count, begin + own)};
}

/* Before the kernel in front has ended: counts of clusters and their offsets are older. */
DEVICE void begin_choice(const choice &c, const score_of &s) {
#pragma unroll 1
  for (int i = THREAD; i < RKV_BUCKETS; i += THREADS) c.ends[i] = 0;
#pragma unroll 1
  for (int i = THREAD; i <= c.count; i += THREADS) c.offsets[i] = s.offsets[i];
}

/* For all blocks. */
DEVICE void put_logit(const choice &c, int g, int i, float logit) {
#pragma unroll 1
  for (int r = 0; r < cluster_ranks(); r++) put_shared_of((unsigned *)c.logits + g * c.padded + i, r, __float_as_uint(logit));
}

/* Ranks from the logits of all: how many clusters have one, the least and the most. parts[queries * slices], all[queries], shared[48]. */
typedef struct { int numbers; unsigned least, most; } ranked;
DEVICE ranked rank_clusters(const choice &c, const score_of &s, float scale, float2 *parts, float2 *all, unsigned *shared) {
  const int bits = __ffs(c.slices) - 1, share = (c.count + c.slices - 1) >> bits;
#pragma unroll 1
  for (int i = WARP; i < s.queries << bits; i += WARPS) {
    const int first = (i & (c.slices - 1)) * share;
    const float2 part = top_and_sum(c.logits + (i >> bits) * c.padded + first, least(share, c.count - first), scale);
    if (LANE == 0) parts[i] = part;
  }
  __syncthreads();
#pragma unroll 1
  for (int g = THREAD; g < s.queries; g += THREADS) all[g] = top_and_inverse(c.slices, [&](int r) { return parts[(g << bits) + r]; });
  __syncthreads();
  ranked found = {0, NO_RANK, 0};
#pragma unroll 1
  for (int i = THREAD; i < c.count; i += THREADS) {
    const float score = c.offsets[i + 1] > c.offsets[i] ? score_of_logits(c.logits + i, c.padded, s.queries, scale, all) : -INFINITE;
    const unsigned rank = c.rank[i] = rank_of(score);
    if (i >= c.begin && i < c.end) s.scores[i] = score;
    found.numbers += rank != NO_RANK;
    found.least = min(found.least, rank);
    found.most = max(found.most, rank == NO_RANK ? 0 : rank);
  }
  const unsigned numbers = __reduce_add_sync(0xffffffffu, found.numbers), lowest = __reduce_min_sync(0xffffffffu, found.least), highest = __reduce_max_sync(0xffffffffu, found.most);
  if (LANE == 0) shared[WARP] = numbers, shared[16 + WARP] = lowest, shared[32 + WARP] = highest;
  __syncthreads();
  const int is_there = LANE < WARPS;
  return ranked{(int)__reduce_add_sync(0xffffffffu, is_there ? shared[LANE] : 0), __reduce_min_sync(0xffffffffu, is_there ? shared[16 + LANE] : NO_RANK),
                __reduce_max_sync(0xffffffffu, is_there ? shared[32 + LANE] : 0)};
}

/* Clusters that have a rank into their order: by buckets of the ranks there are, then by counting in a bucket. A bucket's members come as they come,
 * but it does not show. */
DEVICE void sort_clusters(const choice &c, const ranked &r, int *shared /*[32]*/) {
  const int shift = most(0, 32 - __clz(r.most - r.least) - RKV_BUCKET_BITS), each = (RKV_BUCKETS + THREADS - 1) / THREADS, first = THREAD * each, last = least(RKV_BUCKETS, first + each);
  const auto bucket = [&](unsigned rank) { return (int)((rank - r.least) >> shift); };
#pragma unroll 1
  for (int i = THREAD; i < c.count; i += THREADS) /* which of its bucket it is */
    if (c.rank[i] != NO_RANK) c.sorted[i] = atomicAdd(c.ends + bucket(c.rank[i]), 1);
  __syncthreads();
  int sum = 0, total;
#pragma unroll 1
  for (int b = first; b < last; b++) sum = c.ends[b] += sum;
  const int before = block_scan(sum, shared, &total);
#pragma unroll 1
  for (int b = first; b < last; b++) c.ends[b] += before;
  __syncthreads();
  const auto begin_of = [&](int b) { return b > 0 ? c.ends[b - 1] : 0; };
#pragma unroll 1
  for (int i = THREAD; i < c.count; i += THREADS)
    if (c.rank[i] != NO_RANK) c.members[begin_of(bucket(c.rank[i])) + c.sorted[i]] = i;
  __syncthreads();
#pragma unroll 1
  for (int i = THREAD; i < c.count; i += THREADS) {
    const unsigned rank = c.rank[i];
    if (rank == NO_RANK) continue;
    const int begin = begin_of(bucket(rank)), end = c.ends[bucket(rank)];
    int at = begin;
#pragma unroll 1
    for (int j = begin; j < end; j++) {
      const int other = c.members[j];
      at += c.rank[other] < rank || (c.rank[other] == rank && other < i);
    }
    c.sorted[at] = i;
  }
  __syncthreads();
}

/* With the logits of all, whose blocks have waited for each other: scores, order and rows, as centroid_scores, topk and fill_budget make them; every
 * block does all of it and leaves its share. `put(i, row)`: what the index holds. parts[queries * slices], all[queries], shared[48]. */
template <class Put>
DEVICE void choose_rows(const choice &c, const score_of &s, float scale, const rkv_topk_args &t, const rkv_fill_budget_args &f, float2 *parts, float2 *all, int *shared, Put put) {
  const int n = t.order.shape[1], k = t.order.shape[2];
  const ranked found = rank_clusters(c, s, scale, parts, all, (unsigned *)shared);
  __syncthreads(); /* shared is free */
  if (found.numbers > 0) sort_clusters(c, found, shared);
  int *order = (int *)t.order.data + ((int64_t)s.slot * n + s.row) * k;
#pragma unroll 1
  for (int i = cluster_rank() * THREADS + THREAD; i < k; i += cluster_ranks() * THREADS) order[i] = i < found.numbers ? c.sorted[i] : -1;
  fill_rows(least(k, found.numbers), f.index.shape[2], [&](int i) {
    const int which = c.sorted[i];
    return make_int2(c.offsets[which], c.offsets[which + 1] - c.offsets[which]);
  }, put);
}

#endif
