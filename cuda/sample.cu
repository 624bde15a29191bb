/* sample.cu: from logits to the next token: penalties, the likeliest, the draw. A block has a row. Weights are integers, so no sum depends
 * on an order, and atomics on them do no harm. */
#include "common.cuh"
#include "topk.cuh"

#define NOBODY 0x7fffffff
#define ONE_WEIGHT 1099511627776.0f /* 2^40 */

DEVICE int width_of(rkv_view v) { return v.shape[v.rank - 1]; }
DEVICE float *row_of(rkv_view v, int row) { return (float *)v.data + (int64_t)row * width_of(v); }
DEVICE int skips(rkv_view active, int row) { return active.data && !((const int *)active.data)[row]; }

/* The largest of a row and its first place; NOBODY where no logit is a number. NaN takes no part. shared: 32 words. */
DEVICE int first_largest(const float *logits, int vocab, float *largest, float *shared) {
  float best = -INFINITE;
  int place = NOBODY;
#pragma unroll 8
  for (int i = THREAD; i < vocab; i += THREADS) {
    const float x = logits[i];
    if (x > best || (x == best && place == NOBODY)) best = x, place = i;
  }
  *largest = block_max(best, shared);
  place = best == *largest ? place : NOBODY;
  for (int i = 16; i > 0; i /= 2) place = least(place, __shfl_xor_sync(0xffffffffu, place, i));
  __syncthreads();
  if (LANE == 0) ((int *)shared)[WARP] = place;
  __syncthreads();
  for (int w = 0; w < WARPS; w++) place = least(place, ((int *)shared)[w]);
  __syncthreads();
  return place;
}

/* log(sum exp(logit - shift)); NaN takes no part. */
DEVICE float log_sum(const float *logits, int vocab, float shift, float *shared) {
  float sum = 0;
#pragma unroll 8
  for (int i = THREAD; i < vocab; i += THREADS) {
    const float x = logits[i];
    if (x == x) sum += expf(x - shift);
  }
  return logf(block_sum(sum, shared));
}

KERNEL __launch_bounds__(1024) kernel_greedy(const __grid_constant__ rkv_greedy_args a) {
  begin();
  __shared__ float shared[32];
  const int row = a.first + blockIdx.x, vocab = width_of(a.logits);
  if (skips(a.active, row)) return;
  const float *logits = row_of(a.logits, row);
  float largest;
  const int place = first_largest(logits, vocab, &largest, shared);
  const float sum = log_sum(logits, vocab, largest, shared);
  if (THREAD != 0) return;
  ((int *)a.token.data)[row] = place == NOBODY ? -1 : place;
  ((float *)a.logprob.data)[row] = place == NOBODY ? NOT_A_NUMBER : -sum;
}

KERNEL kernel_tally(const __grid_constant__ rkv_tally_args a) {
  begin();
  const int vocab = width_of(a.counts), *token = (const int *)a.token.data, *active = (const int *)a.active.data;
  for (int s = THREAD; s < a.token.shape[0]; s += THREADS)
    if (active[s] && token[s] >= 0 && token[s] < vocab) ((int *)a.counts.data)[(int64_t)s * vocab + token[s]] += 2;
}

KERNEL __launch_bounds__(1024) kernel_penalize(const __grid_constant__ rkv_penalize_args a) {
  begin();
  const int row = a.first + blockIdx.x, vocab = width_of(a.logits);
  const float *options = row_of(a.options, row), *logits = row_of(a.logits, row), *bias = row_of(a.bias, row);
  const int *counts = (const int *)row_of(a.counts, row);
  if (skips(a.active, row) || options[RKV_ADJUSTS] == 0) return;
  for (int i = THREAD; i < vocab; i += THREADS) {
    const float generated = (float)(counts[i] >> 1);
    float x = logits[i];
    if (counts[i] > 0) x = x > 0 ? x / options[RKV_REPETITION] : x * options[RKV_REPETITION];
    if (generated > 0) x -= options[RKV_FREQUENCY] * generated + options[RKV_PRESENCE];
    row_of(a.adjusted, row)[i] = x + bias[i];
  }
}

/* ---- the draw ---- */

typedef struct { const float *x; int vocab; float shift, temperature; unsigned rank; int last; } urn; /* last: the last id of `rank` that takes part */

DEVICE unsigned long long weight_at(const urn &u, int i) {
  const float w = expf(u.x[i] / u.temperature - u.shift) * ONE_WEIGHT;
  if (!(w >= 1)) return 0;
  const unsigned rank = rank_of(u.x[i]);
  return rank > u.rank || (rank == u.rank && i > u.last) ? 0 : (unsigned long long)w;
}

/* Over a block. shared: one word. */
DEVICE unsigned long long weight_of(const urn &u, unsigned long long lightest, unsigned long long *shared) {
  unsigned long long sum = 0;
  for (int i = THREAD; i < u.vocab; i += THREADS) {
    const unsigned long long w = weight_at(u, i);
    sum += w >= lightest ? w : 0;
  }
  for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, i);
  __syncthreads();
  if (THREAD == 0) *shared = 0;
  __syncthreads();
  if (LANE == 0) atomicAdd(shared, sum);
  __syncthreads();
  return *shared;
}

/* The id of the ties-th candidate of a rank, in order of ids. */
DEVICE int id_of_tie(const float *x, int vocab, unsigned rank, long long ties, int *shared /*[33]*/) {
  __shared__ int id;
  long long before = 0;
  if (THREAD == 0) id = vocab;
  __syncthreads();
  for (int begin = 0; begin < vocab && before < ties; begin += THREADS) {
    const int i = begin + THREAD, is_tie = i < vocab && rank_of(x[i]) == rank;
    int total;
    const int place = block_scan(is_tie, shared, &total);
    if (is_tie && before + place + 1 == ties) id = i;
    before += total;
    __syncthreads();
  }
  return id;
}

/* Cuts to the shortest prefix whose weights reach `wanted`. */
DEVICE void cut_by_weight(urn &u, unsigned long long wanted, unsigned long long *sums /*[RKV_DIGITS]*/, int *shared) {
  __shared__ unsigned found;
  __shared__ unsigned long long rest, each;
  unsigned prefix = 0;
  for (int d = 0; d < 3; d++) {
    const int shift = d == 0 ? 21 : d == 1 ? 10 : 0, bits = d == 2 ? 10 : 11;
    const unsigned mask = (1u << bits) - 1;
    __syncthreads();
    for (int i = THREAD; i <= (int)mask; i += THREADS) sums[i] = 0;
    __syncthreads();
    for (int i = THREAD; i < u.vocab; i += THREADS) {
      const unsigned long long w = weight_at(u, i);
      if (w == 0) continue;
      const unsigned rank = rank_of(u.x[i]);
      if (d == 0 || rank >> (shift + bits) == prefix) atomicAdd(&sums[rank >> shift & mask], w);
    }
    __syncthreads();
    if (THREAD == 0) {
      unsigned digit = 0;
      for (; digit < mask && wanted > sums[digit]; digit++) wanted -= sums[digit];
      found = digit, rest = wanted, each = 0;
    }
    __syncthreads();
    prefix = prefix << bits | found;
    wanted = rest;
  }
  for (int i = THREAD; i < u.vocab; i += THREADS) {
    const unsigned long long w = rank_of(u.x[i]) == prefix ? weight_at(u, i) : 0;
    if (w) each = w; /* equal logits have equal weights */
  }
  __syncthreads();
  const int last = id_of_tie(u.x, u.vocab, prefix, each == 0 ? 1 : (long long)((wanted + each - 1) / each), shared);
  u.last = prefix == u.rank ? least(last, u.last) : last;
  u.rank = prefix;
}

/* Philox 2x32-10. */
DEVICE unsigned long long philox(unsigned key, unsigned low) {
  unsigned high = 0;
  for (int round = 0; round < 10; round++) {
    const unsigned product = 0xd256d193u * low;
    low = __umulhi(0xd256d193u, low) ^ key ^ high;
    high = product;
    key += 0x9e3779b9u;
  }
  return (unsigned long long)low << 32 | high;
}

KERNEL __launch_bounds__(1024) kernel_sample(const __grid_constant__ rkv_sample_args a) {
  begin();
  __shared__ unsigned long long sums[RKV_DIGITS], runs[1024], total;
  __shared__ int ints[40], drawn;
  float *shared = (float *)ints;
  const int row = a.first + blockIdx.x, vocab = width_of(a.logits);
  if (skips(a.active, row)) return;
  const float *options = row_of(a.options, row), *logits = row_of(a.logits, row);
  urn u = {options[RKV_ADJUSTS] == 0 ? logits : row_of(a.adjusted, row), vocab, 0, options[RKV_TEMPERATURE], NO_RANK - 1, NOBODY};
  float largest;
  int token = first_largest(u.x, vocab, &largest, shared);
  u.shift = largest / u.temperature;
  if (token != NOBODY && u.temperature > 0 && u.shift < INFINITE && u.shift > -INFINITE) {
    const int top_k = (int)options[RKV_TOP_K];
    if (top_k > 0 && top_k < vocab) {
      int ties;
      u.rank = rank_of_kth((unsigned *)sums, ints, u.x, vocab, place{0, -1}, top_k, &ties);
      if (u.rank == NO_RANK) u.rank = NO_RANK - 1;
      else u.last = id_of_tie(u.x, vocab, u.rank, ties, ints);
    }
    if (options[RKV_TOP_P] < 1) {
      const unsigned long long wanted = (unsigned long long)ceil((double)options[RKV_TOP_P] * (double)weight_of(u, 0, &total));
      cut_by_weight(u, wanted > 0 ? wanted : 1, sums, ints);
    }
    const unsigned long long lightest = (unsigned long long)(options[RKV_MIN_P] * ONE_WEIGHT), sum = weight_of(u, lightest, &total);
    const unsigned seed = (unsigned)options[RKV_SEED_HIGH] << 16 | (unsigned)options[RKV_SEED_LOW];
    const unsigned long long target = __umul64hi(philox(seed, (unsigned)((const int *)a.position.data)[row]), sum);
    /* Each thread has a run of ids; the thread whose run takes the sum past the target walks it. */
    const int run = ceil_div(vocab, THREADS), begin = THREAD * run, end = least(vocab, begin + run);
    unsigned long long mine = 0, passed = 0;
    for (int i = begin; i < end; i++) {
      const unsigned long long w = weight_at(u, i);
      mine += w >= lightest ? w : 0;
    }
    runs[THREAD] = mine;
    __syncthreads();
    for (int t = 0; t < THREAD; t++) passed += runs[t];
    if (passed <= target && target < passed + mine) {
      int i = begin;
      for (; i < end; i++) {
        const unsigned long long w = weight_at(u, i);
        passed += w >= lightest ? w : 0;
        if (passed > target) break;
      }
      drawn = i;
    }
    __syncthreads();
    token = drawn;
  }
  if (u.x != logits) first_largest(logits, vocab, &largest, shared);
  const float sum = log_sum(logits, vocab, largest, shared);
  if (THREAD != 0) return;
  ((int *)a.token.data)[row] = token == NOBODY ? -1 : token;
  ((float *)a.logprob.data)[row] = token == NOBODY ? NOT_A_NUMBER : logits[token] - largest - sum;
}

/* ---- the likeliest: one after the other, for there are few ---- */

KERNEL __launch_bounds__(1024) kernel_likeliest(const __grid_constant__ rkv_likeliest_args a) {
  begin();
  __shared__ float shared[32];
  __shared__ unsigned long long best;
  const int row = a.first + blockIdx.x, vocab = width_of(a.logits);
  if (skips(a.active, row)) return;
  const int wanted = least(width_of(a.tokens), (int)row_of(a.options, row)[RKV_LIKELIEST]);
  if (wanted <= 0) return;
  const float *logits = row_of(a.logits, row);
  float largest;
  first_largest(logits, vocab, &largest, shared);
  const float sum = log_sum(logits, vocab, largest, shared);
  unsigned long long after = 0; /* rank, then id, + 1 */
  for (int k = 0; k < wanted; k++) {
    __syncthreads();
    if (THREAD == 0) best = 0xffffffffffffffffull;
    __syncthreads();
    unsigned long long mine = 0xffffffffffffffffull;
    for (int i = THREAD; i < vocab; i += THREADS) {
      const unsigned rank = rank_of(logits[i]);
      const unsigned long long at = (unsigned long long)rank << 32 | (unsigned)i;
      if (rank != NO_RANK && at >= after && at < mine) mine = at;
    }
    atomicMin(&best, mine);
    __syncthreads();
    const int found = best != 0xffffffffffffffffull, id = found ? (int)(best & 0xffffffffu) : -1;
    after = best + 1;
    if (!found) after = best;
    if (THREAD == 0) {
      ((int *)a.tokens.data)[(int64_t)row * width_of(a.tokens) + k] = id;
      row_of(a.logprobs, row)[k] = found ? logits[id] - largest - sum : NOT_A_NUMBER;
    }
  }
}
