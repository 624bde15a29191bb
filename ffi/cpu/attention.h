/* attention.h: between the plan of decode attention (attention.c) and its arithmetic over a list of rows (attention_rows.c). */
#ifndef RKV_ATTENTION_H
#define RKV_ATTENTION_H
#include "decoder.h"
#include "rowtypes.h"

#define RKV_STEP_LIST ((RKV_PIECE + RKV_LANES) * 4)            /* bytes: room to fill up the last vector's worth of rows */
#define RKV_STEP_LOGITS ((RKV_PIECE + RKV_LANES) * 4 * 4)      /* bytes: up to four heads side by side */

#define RKV_LOG2_E 1.44269504088896341f                        /* in units of ln 2, e^x is 2^x */

/* Rows of one KV head and what is done with them. */
typedef struct rkv_step {
  const char *keys, *values;        /* row 0 of the head's plane */
  int32_t key_dtype, value_dtype, dim, rows;
  float scale, soft_cap;
  int32_t *list;                    /* [rows], with room for RKV_LANES more */
  const int32_t *next;              /* [next_rows]: rows whose keys are wanted after these */
  int32_t next_rows, cold;          /* cold: nobody has asked for the keys of the rows at hand */
  float *s;                         /* logits, then probabilities: [rows][1, 2 or 4 heads]; of q8 rows [heads][rows] */
  float *sums;                      /* [heads][dim + 2]: sum of probability * value, largest logit, sum of probabilities */
} rkv_step;

/* Asks for rows [j, end) of a list, into L2: values while logits are made, the next keys while values are summed, so that memory never rests.
 * Neighbours, as most rows are, are asked for line by line. */
RKV_INLINE void rkv_fetch_rows(const char *plane, size_t bytes, const int32_t *list, int32_t j, int32_t end) {
  if (j >= end) return;
  if (list[end - 1] - list[j] == end - 1 - j) {
    const char *at = plane + (size_t)list[j] * bytes, *last = at + (size_t)(end - j) * bytes;
    for (; at < last; at += 64) __builtin_prefetch(at, 0, 2);
    return;
  }
  for (; j < end; j++)
    for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(plane + (size_t)list[j] * bytes + at, 0, 2);
}

/* Partial softmaxes of up to four heads over the listed rows (at least one). q: [heads, dim]. */
void RKV_FN(rkv_attend_rows)(const rkv_step *step, const float *q, int32_t heads);

/* The same for q8 rows, keys and values, in 16-bit numbers (attention_words.c). */
static inline int32_t rkv_in_words(const rkv_step *step) {
  return RKV_WORDS && step->key_dtype == RKV_Q8 && step->value_dtype == RKV_Q8 && step->dim % 32 == 0 && step->dim <= 512;
}
void RKV_FN(rkv_attend_words)(const rkv_step *step, const float *q, int32_t heads);

/* to[rows / RKV_PANEL][dim][RKV_PANEL] = keys of `rows` rows as f32, side by side; what fills up the last vector of rows is 0. */
void RKV_FN(rkv_key_panels)(float *to, const char *keys, int32_t rows, int32_t dim, int32_t dtype);

/* Prefill in BF16 (attention_pairs.c), for rows of at most 16 bits: pairs (query, head of the group) [first, first + rows) of a KV head. */
#define RKV_PAIRS_BLOCK 192
static inline int32_t rkv_in_pairs(const rkv_rows_data *rows) { return RKV_PAIRS && rows->keys.dtype != RKV_F32 && rows->values.dtype != RKV_F32; }
void RKV_FN(rkv_attend_pairs)(const rkv_attend_chunk_args *op, int32_t kv_head, int32_t first, int32_t rows, void *scratch);

/* to = the softmax over what either has seen; one that has seen nothing (sum 0) changes nothing. */
static inline void rkv_merge_softmax(float *to /*[dim + 2]*/, const float *from /*[dim + 2]*/, int32_t dim) {
  if (from[dim + 1] == 0) return;
  const float largest = from[dim] > to[dim] ? from[dim] : to[dim];
  const float old = to[dim + 1] == 0 ? 0 : rkv_exp1(to[dim] - largest), new = rkv_exp1(from[dim] - largest);
  int32_t d = 0;
  for (; d + RKV_LANES <= dim; d += RKV_LANES) rkv_store(to + d, rkv_fma(rkv_load(to + d), rkv_set1(old), rkv_load(from + d) * rkv_set1(new)));
  for (; d < dim; d++) to[d] = rkv_fma1(to[d], old, from[d] * new);
  to[dim] = largest;
  to[dim + 1] = rkv_fma1(to[dim + 1], old, from[dim + 1] * new);
}

/* cap * tanh(x / cap), tanh(t) = 1 - 2 / (e^2t + 1). Source: Gemma 2 (arXiv 2408.00118). */
RKV_INLINE rkv_vec rkv_soft_cap(rkv_vec x, float cap) {
  const rkv_vec e = rkv_exp(x * rkv_set1(2.0f / cap));
  return rkv_set1(cap) * (rkv_set1(1.0f) - rkv_set1(2.0f) / (e + rkv_set1(1.0f)));
}

#endif
