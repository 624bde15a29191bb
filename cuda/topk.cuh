/* topk.cuh: the k best of a row of scores, by a whole block: descending, ties to the lower id. */
#ifndef RKV_TOPK_CUH
#define RKV_TOPK_CUH
#include "common.cuh"

#define RKV_DIGITS 2048

/* The place of a candidate in the order: rank, then id. */
typedef struct { unsigned rank; int id; } place;
DEVICE int is_after(unsigned rank, int id, place from) { return rank > from.rank || (rank == from.rank && id > from.id); }

/* The rank of the k-th best (k >= 1) after `from`, and in *ties how many of that rank belong to the first k. With fewer than k numbers: NO_RANK.
 * Scores are counted by one digit of their rank after the other; integers, so the order of counting is no matter. */
DEVICE unsigned rank_of_kth(unsigned *counts /*[RKV_DIGITS]*/, int *shared /*[34]*/, const float *scores, int width, place from, int k, int *ties) {
  unsigned prefix = 0;
  for (int d = 0; d < 3; d++) {
    const int shift = d == 0 ? 21 : d == 1 ? 10 : 0, bits = d == 2 ? 10 : 11;
    const unsigned mask = (1u << bits) - 1;
    __syncthreads();
    for (int i = THREAD; i <= (int)mask; i += THREADS) counts[i] = 0;
    __syncthreads();
    for (int i = THREAD; i < width; i += THREADS) {
      const unsigned rank = rank_of(scores[i]);
      if (rank == NO_RANK || !is_after(rank, i, from)) continue;
      if (d == 0 || rank >> (shift + bits) == prefix) atomicAdd(&counts[rank >> shift & mask], 1u);
    }
    __syncthreads();
    if (WARP == 0) { /* the digit in which the k-th lies */
      int left = k, digit = -1;
      for (unsigned base = 0; base <= mask && digit < 0; base += 32) {
        int sum = (int)counts[base + LANE];
        const int own = sum;
        for (int i = 1; i < 32; i *= 2) {
          const int before = __shfl_up_sync(0xffffffffu, sum, i);
          if (LANE >= i) sum += before;
        }
        const unsigned reached = __ballot_sync(0xffffffffu, sum >= left);
        if (reached) {
          const int lane = __ffs(reached) - 1;
          digit = (int)base + lane;
          left -= __shfl_sync(0xffffffffu, sum - own, lane);
        } else left -= __shfl_sync(0xffffffffu, sum, 31);
      }
      if (LANE == 0) shared[32] = digit, shared[33] = left;
    }
    __syncthreads();
    const int digit = shared[32];
    k = shared[33];
    *ties = k;
    if (digit < 0) return NO_RANK; /* only at the first digit */
    prefix = prefix << bits | (unsigned)digit;
  }
  return prefix;
}

/* Calls `take(at, id, rank)` for every candidate after `from` that is better than rank `last`, or has it and is among the first `ties` with it;
 * ids ascend with `at`. Returns how many. */
template <class Take>
DEVICE int take_best(const float *scores, int width, place from, unsigned last, int ties, int *shared /*[34]*/, Take take) {
  int done = 0;
  for (int base = 0; base < width; base += THREADS) {
    const int i = base + THREAD;
    const unsigned rank = i < width ? rank_of(scores[i]) : NO_RANK;
    const int is_candidate = rank != NO_RANK && is_after(rank, i, from), is_tie = is_candidate && rank == last;
    int tied, taken;
    __syncthreads();
    const int before = block_scan(is_tie, shared, &tied);
    const int is_taken = is_candidate && (rank < last || (is_tie && before < ties));
    __syncthreads();
    const int at = done + block_scan(is_taken, shared, &taken);
    if (is_taken) take(at, i, rank);
    ties -= tied;
    done += taken;
  }
  __syncthreads();
  return done;
}

/* Sorts n pairs ascending, bitonically; places up to the next power of two are used. */
DEVICE void sort_pairs(unsigned long long *pairs, int n) {
  int size = 1;
  while (size < n) size *= 2;
  __syncthreads();
  for (int i = n + THREAD; i < size; i += THREADS) pairs[i] = ~0ull;
  for (int run = 2; run <= size; run *= 2)
    for (int step = run / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int i = THREAD; i < size / 2; i += THREADS) {
        const int low = 2 * i - (i & (step - 1)), high = low + step;
        const unsigned long long a = pairs[low], b = pairs[high];
        if ((a > b) == ((low & run) == 0)) pairs[low] = b, pairs[high] = a;
      }
    }
  __syncthreads();
}

#endif
