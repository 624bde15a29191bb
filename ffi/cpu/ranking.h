/* ranking.h: what the kernels that rank candidates share: softmax over scores, and the total order of scores. */
#ifndef RKV_RANKING_H
#define RKV_RANKING_H
#include "cpu.h"
#include "simd.h"

/* scores (+)= softmax(scale * logits); logits are overwritten. Nothing to choose from leaves scores as they are. */
static inline __attribute__((unused)) void rkv_add_softmax(float *scores, float *logits, int32_t count, float scale, int32_t add) {
  rkv_vec top = rkv_set1(-INFINITY), sum = {0};
  for (int32_t c = 0; c < count; c += RKV_LANES) {
    const rkv_vec x = rkv_load(logits + c) * rkv_set1(scale);
    rkv_store(logits + c, x);
    top = rkv_max(x, top);
  }
  const rkv_vec most = rkv_set1(rkv_max_lane(top));
  for (int32_t c = 0; c < count; c += RKV_LANES) {
    const rkv_vec x = rkv_exp(rkv_load(logits + c) - most);
    rkv_store(logits + c, x);
    sum += x;
  }
  const rkv_vec inverse = rkv_set1(1 / rkv_sum(sum));
  for (int32_t c = 0; c < count; c += RKV_LANES) {
    const int32_t n = rkv_min_int(RKV_LANES, count - c);
    const rkv_vec x = rkv_load(logits + c) * inverse;
    if (n == RKV_LANES) rkv_store(scores + c, add ? rkv_load(scores + c) + x : x);
    else rkv_store_part(scores + c, add ? rkv_load_part(scores + c, n) + x : x, n);
  }
}

/* A number that is smaller for a better score. */
#define RKV_NO_RANK 0xffffffffu /* of -inf and NaN */
static inline uint32_t rkv_rank_of(float score) {
  uint32_t bits;
  if (!(score > -INFINITY)) return RKV_NO_RANK;
  score += 0.0f; /* -0 is 0 */
  memcpy(&bits, &score, 4);
  return bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
}

/* The place of a candidate in the order: rank, then id. */
typedef struct { uint32_t rank; int32_t id; } rkv_place;
static inline int32_t rkv_is_after(rkv_place a, rkv_place b) { return a.rank > b.rank || (a.rank == b.rank && a.id > b.id); }

/* The rank of the k-th best (k >= 1) after `from`, and in *ties how many of that rank belong to the first k. With fewer than k scores that
 * are numbers: RKV_NO_RANK, and how many are missing. Counts the scores by one digit of their rank after the other. */
#define RKV_DIGITS 2048
static inline __attribute__((unused)) uint32_t rkv_rank_of_kth(uint32_t *counts /*[RKV_DIGITS]*/, const float *scores, int32_t width,
                                                               rkv_place from, int32_t k, int32_t *ties) {
  static const int32_t shifts[] = {21, 10, 0}, bits[] = {11, 11, 10};
  uint32_t prefix = 0;
  for (int32_t d = 0; d < 3; d++) {
    const uint32_t mask = (1u << bits[d]) - 1;
    memset(counts, 0, ((size_t)mask + 1) * 4);
    for (int32_t i = 0; i < width; i++) {
      const uint32_t rank = rkv_rank_of(scores[i]);
      if (rank == RKV_NO_RANK || !rkv_is_after((rkv_place){rank, i}, from)) continue;
      if (d == 0 || rank >> (shifts[d] + bits[d]) == prefix) counts[rank >> shifts[d] & mask]++;
    }
    uint32_t digit = 0;
    for (; digit <= mask && (uint32_t)k > counts[digit]; digit++) k -= (int32_t)counts[digit];
    *ties = k;
    if (digit > mask) return RKV_NO_RANK; /* only at the first digit */
    prefix = prefix << bits[d] | digit;
  }
  return prefix;
}
#endif
