/* attention_rows.c: the arithmetic of decode attention: up to four heads against a list of rows of their KV head. */
#include "attention.h"

/* Logits lie [rows][width], width = heads rounded up to 1, 2 or 4, so that a vector of them holds RKV_LANES / width whole rows and every
 * lane always belongs to the same head. */
#define WIDTH(heads) ((heads) == 3 ? 4 : (heads))

#define COLD_AHEAD 16        /* rows */

/* s[rows][width] = scale * q . k. One accumulator per (row, head); a transposing sum folds RKV_LANES of them at once. */
RKV_INLINE void logits(const rkv_step *step, const float *q, int32_t dtype, int32_t heads) {
  const int32_t width = WIDTH(heads), rows_at_once = RKV_LANES / width, dim = step->dim;
  const size_t bytes = rkv_row_bytes(dtype, dim);
  for (int32_t j = 0; j < step->rows; j += rows_at_once) {
    const char *row[RKV_LANES];
    rkv_vec sum[RKV_LANES];
    RKV_UNROLL for (int32_t r = 0; r < rows_at_once; r++) row[r] = step->keys + (size_t)step->list[j + r] * bytes;
    if (step->cold) rkv_fetch_rows(step->keys, bytes, step->list, j + COLD_AHEAD, rkv_min_int(step->rows, j + COLD_AHEAD + rows_at_once));
    rkv_fetch_rows(step->values, rkv_row_bytes(step->value_dtype, dim), step->list, j, j + rows_at_once);
    RKV_UNROLL for (int32_t i = 0; i < RKV_LANES; i++) sum[i] = (rkv_vec){0};
    int32_t d = 0;
    for (; d + RKV_LANES <= dim; d += RKV_LANES) {
      rkv_vec x[4];
      RKV_UNROLL for (int32_t h = 0; h < heads; h++) x[h] = rkv_load(q + h * dim + d);
      RKV_UNROLL for (int32_t r = 0; r < rows_at_once; r++) {
        const rkv_vec k = rkv_row_load(dtype, row[r], d);
        RKV_UNROLL for (int32_t h = 0; h < heads; h++) sum[r * width + h] = rkv_fma(k, x[h], sum[r * width + h]);
      }
    }
    if (d < dim)
      RKV_UNROLL for (int32_t r = 0; r < rows_at_once; r++) {
        const rkv_vec k = rkv_row_load_part(dtype, row[r], d, dim - d);
        RKV_UNROLL for (int32_t h = 0; h < heads; h++) sum[r * width + h] = rkv_fma(k, rkv_load_part(q + h * dim + d, dim - d), sum[r * width + h]);
      }
    rkv_vec s = rkv_sum_rows(sum) * rkv_set1(step->scale);
    if (dtype == RKV_Q8) {
      rkv_vec scale = {0};
      RKV_UNROLL for (int32_t i = 0; i < RKV_LANES; i++) scale[i] = rkv_q8_scale(row[i / width], dim);
      s *= scale;
    }
    rkv_store(step->s + j * width, s);
  }
}

/* sums[heads][0 .. dim) = sum over rows of s * v, `vecs` vectors from d on. */
RKV_INLINE void weigh(const rkv_step *step, int32_t d, int32_t dtype, int32_t heads, int32_t vecs, int32_t part) {
  const int32_t width = WIDTH(heads), dim = step->dim;
  const size_t bytes = rkv_row_bytes(dtype, dim);
  rkv_vec sum[4][4];
  RKV_UNROLL for (int32_t h = 0; h < heads; h++)
    RKV_UNROLL for (int32_t i = 0; i < vecs; i++) sum[h][i] = (rkv_vec){0};
  const size_t key_bytes = rkv_row_bytes(step->key_dtype, dim);
  const int32_t wanted = d == 0 ? step->next_rows : 0;
  for (int32_t j = 0; j < step->rows; j++) {
    const char *row = step->values + (size_t)step->list[j] * bytes;
    if (j % 4 == 0) rkv_fetch_rows(step->keys, key_bytes, step->next, j, rkv_min_int(wanted, j + 4));
    rkv_vec v[4];
    RKV_UNROLL for (int32_t i = 0; i < vecs; i++) v[i] = part ? rkv_row_load_part(dtype, row, d, part) : rkv_row_load(dtype, row, d + i * RKV_LANES);
    RKV_UNROLL for (int32_t h = 0; h < heads; h++) {
      const rkv_vec p = rkv_set1(step->s[j * width + h]);
      RKV_UNROLL for (int32_t i = 0; i < vecs; i++) sum[h][i] = rkv_fma(p, v[i], sum[h][i]);
    }
  }
  RKV_UNROLL for (int32_t h = 0; h < heads; h++)
    RKV_UNROLL for (int32_t i = 0; i < vecs; i++) {
      float *to = step->sums + h * (dim + 2) + d + i * RKV_LANES;
      if (part) rkv_store_part(to, sum[h][i], part);
      else rkv_store(to, sum[h][i]);
    }
}

RKV_INLINE void weigh_all(const rkv_step *step, int32_t dtype, int32_t heads) {
  int32_t d = 0;
#if RKV_LANES == 16
  for (; d + 4 * RKV_LANES <= step->dim; d += 4 * RKV_LANES) weigh(step, d, dtype, heads, 4, 0);
#endif
  for (; d + 2 * RKV_LANES <= step->dim; d += 2 * RKV_LANES) weigh(step, d, dtype, heads, 2, 0);
  for (; d + RKV_LANES <= step->dim; d += RKV_LANES) weigh(step, d, dtype, heads, 1, 0);
  if (d < step->dim) weigh(step, d, dtype, heads, 1, step->dim - d);
}

/* Folds the lanes of a vector onto the head they belong to. */
RKV_INLINE void fold(float *to /*[4]*/, rkv_vec v, int32_t width, int32_t is_max) {
  float lanes[RKV_LANES];
  rkv_store(lanes, v);
  for (int32_t half = RKV_LANES / 2; half >= width; half /= 2)
    for (int32_t i = 0; i < half; i++) lanes[i] = !is_max ? lanes[i] + lanes[i + half] : lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  memcpy(to, lanes, (size_t)width * 4);
}

/* Logits to probabilities; largest and sum of each head go behind its values. */
static void soften(const rkv_step *step, int32_t heads) {
  const int32_t width = WIDTH(heads), n = step->rows * width;
  rkv_vec largest = rkv_set1(-INFINITY), sum = {0}, shift;
  float of_head[4] = {0}, lanes[RKV_LANES];
  for (int32_t i = 0; i < n; i += RKV_LANES) {
    rkv_vec s = rkv_load(step->s + i);
    if (step->soft_cap > 0) {
      s = rkv_soft_cap(s, step->soft_cap);
      rkv_store(step->s + i, s);
    }
    largest = rkv_max(s, largest);
  }
  for (int32_t i = n; i % RKV_LANES; i++) step->s[i] = -INFINITY;    /* the last row again, to fill up a vector */
  fold(of_head, largest, width, 1);
  for (int32_t i = 0; i < RKV_LANES; i++) lanes[i] = of_head[i % width];
  shift = rkv_load(lanes);
  for (int32_t i = 0; i < n; i += RKV_LANES) {
    const rkv_vec p = rkv_exp(rkv_load(step->s + i) - shift);
    rkv_store(step->s + i, p);
    sum += p;
  }
  for (int32_t h = 0; h < heads; h++) step->sums[h * (step->dim + 2) + step->dim] = of_head[h];
  fold(of_head, sum, width, 0);
  for (int32_t h = 0; h < heads; h++) step->sums[h * (step->dim + 2) + step->dim + 1] = of_head[h];
  if (step->value_dtype == RKV_Q8)
    for (int32_t j = 0; j < step->rows; j++) {
      const float scale = rkv_q8_scale(step->values + (size_t)step->list[j] * rkv_row_bytes(RKV_Q8, step->dim), step->dim);
      for (int32_t i = 0; i < width; i++) step->s[j * width + i] *= scale;
    }
}

#define OF_HEADS(of_rows)                    \
  switch (heads) {                           \
    case 1: of_rows(1); break;               \
    case 2: of_rows(2); break;               \
    case 3: of_rows(3); break;               \
    default: of_rows(4); break;              \
  }                                          \
  break;
#define OF_DTYPE(dtype, f32, f16, bf16, q8)  \
  switch (dtype) {                           \
    case RKV_F16: OF_HEADS(f16)              \
    case RKV_BF16: OF_HEADS(bf16)            \
    case RKV_Q8: OF_HEADS(q8)                \
    default: OF_HEADS(f32)                   \
  }

void RKV_FN(rkv_attend_rows)(const rkv_step *step, const float *q, int32_t heads) {
  for (int32_t i = 0; i < RKV_LANES; i++) step->list[step->rows + i] = step->list[step->rows - 1];
#if RKV_WORDS
  if (rkv_in_words(step)) return RKV_FN(rkv_attend_words)(step, q, heads);
#endif
#define LOGITS_F32(n) logits(step, q, RKV_F32, n)
#define LOGITS_F16(n) logits(step, q, RKV_F16, n)
#define LOGITS_BF16(n) logits(step, q, RKV_BF16, n)
#define LOGITS_Q8(n) logits(step, q, RKV_Q8, n)
  OF_DTYPE(step->key_dtype, LOGITS_F32, LOGITS_F16, LOGITS_BF16, LOGITS_Q8)
  soften(step, heads);
#define WEIGH_F32(n) weigh_all(step, RKV_F32, n)
#define WEIGH_F16(n) weigh_all(step, RKV_F16, n)
#define WEIGH_BF16(n) weigh_all(step, RKV_BF16, n)
#define WEIGH_Q8(n) weigh_all(step, RKV_Q8, n)
  OF_DTYPE(step->value_dtype, WEIGH_F32, WEIGH_F16, WEIGH_BF16, WEIGH_Q8)
}
