/* attention_words.c: decode attention over q8 rows where the instruction set multiplies pairs of 16-bit numbers: queries and probabilities become
 * 16-bit numbers with a scale for each head, so that bytes are widened once and products need no conversion. A query's element and a
 * probability are off by at most 2^-16 of the largest; the bytes themselves are by 2^-8. */
#include "attention.h"
#if RKV_WORDS

#define WIDTH(heads) ((heads) == 3 ? 4 : (heads))
#define LARGEST 32767
#define WIDEST 512           /* channels of a head */

/* Rows are looked up BLOCK at a time: their scales first, which stand apart from what the vectors load. */
#define BLOCK 16

/* Scales of listed rows [j, j + BLOCK), of those there are; the others' are 0. */
static void row_scales(float *scale /*[BLOCK]*/, const char *plane, const rkv_step *step, int32_t j) {
  const size_t bytes = rkv_row_bytes(RKV_Q8, step->dim);
  const int32_t n = rkv_min_int(BLOCK, step->rows - j);
  for (int32_t i = 0; i < n; i++) scale[i] = rkv_q8_scale(plane + (size_t)step->list[j + i] * bytes, step->dim);
  for (int32_t i = n; i < BLOCK; i++) scale[i] = 0;
}

/* Asks for listed rows [j, j + BLOCK), which lie as they like. */
static void fetch(const char *plane, const rkv_step *step, int32_t j) {
  const size_t bytes = rkv_row_bytes(RKV_Q8, step->dim);
  for (int32_t i = j, end = rkv_min_int(step->rows, j + BLOCK); i < end; i++)
    for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(plane + (size_t)step->list[i] * bytes + at, 0, 2);
}

/* Lane i: element i / width of the next RKV_LANES / width. */
RKV_INLINE rkv_vec of_rows(const float *scale, int32_t width) {
  const rkv_vec v = rkv_load(scale);
  if (width == 4) return __builtin_shufflevector(v, v, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  if (width == 2) return __builtin_shufflevector(v, v, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  return v;
}

/* Lane i: element i % width. */
RKV_INLINE rkv_vec of_heads(const float *of_head, int32_t width) {
  float lanes[RKV_LANES];
  for (int32_t i = 0; i < RKV_LANES; i++) lanes[i] = of_head[i % width];
  return rkv_load(lanes);
}

/* words = q / step, and that step; NaN where q holds what is no number. */
static float query_words(int16_t *words, const float *q, int32_t dim) {
  rkv_ivec size = {0};
  for (int32_t d = 0; d < dim; d += RKV_LANES) size = rkv_int_max(size, (rkv_ivec)rkv_load(q + d) & 0x7fffffff);
  const int32_t bits = rkv_int_max_lane(size), is_number = bits < 0x7f800000;
  float largest;
  memcpy(&largest, &bits, 4);
  const rkv_vec inverse = rkv_set1(is_number && largest > 1e-30f ? LARGEST / largest : 0);
  for (int32_t d = 0; d < dim; d += RKV_LANES) {
    const rkv_hvec w = __builtin_convertvector((rkv_uvec)(is_number ? rkv_round(rkv_load(q + d) * inverse) : (rkv_ivec){0}), rkv_hvec);
    memcpy(words + d, &w, sizeof w);
  }
  return is_number ? largest / LARGEST : NAN;
}

RKV_INLINE void logits(const rkv_step *step, const int16_t *q /*[heads][dim]*/, const float *factor, int32_t heads) {
  const int32_t width = WIDTH(heads), rows_at_once = RKV_LANES / width, dim = step->dim;
  const size_t bytes = rkv_row_bytes(RKV_Q8, dim);
  const rkv_vec factors = of_heads(factor, width) * rkv_set1(step->scale);
  float scale[BLOCK + RKV_LANES];
  for (int32_t j = 0; j < step->rows; j += rows_at_once) {
    if (j % BLOCK == 0) {
      fetch(step->keys, step, j + 2 * BLOCK);
      if (step->value_dtype == RKV_Q8) fetch(step->values, step, j);   /* wanted as soon as the logits are done */
      row_scales(scale, step->keys, step, j);
    }
    const char *row[RKV_LANES];
    rkv_ivec sum[RKV_LANES];
    RKV_UNROLL for (int32_t r = 0; r < rows_at_once; r++) row[r] = step->keys + (size_t)step->list[j + r] * bytes;
    RKV_UNROLL for (int32_t i = 0; i < RKV_LANES; i++) sum[i] = (rkv_ivec){0};
    for (int32_t d = 0; d < dim; d += 2 * RKV_LANES) {
      rkv_ivec x[4];
      RKV_UNROLL for (int32_t h = 0; h < heads; h++) memcpy(&x[h], q + h * dim + d, sizeof x[h]);
      RKV_UNROLL for (int32_t r = 0; r < rows_at_once; r++) {
        const rkv_ivec k = rkv_widen_bytes(row[r] + d);
        RKV_UNROLL for (int32_t h = 0; h < heads; h++) sum[r * width + h] = rkv_add_words(sum[r * width + h], k, x[h]);
      }
    }
    rkv_store(step->s + j * width, __builtin_convertvector(rkv_int_sum_rows(sum), rkv_vec) * factors * of_rows(scale + j % BLOCK, width));
  }
}

void RKV_FN(rkv_word_logits)(const rkv_step *step, const float *q, int32_t heads) {
  int16_t words[4 * WIDEST];
  float factor[4] = {0};
  for (int32_t h = 0; h < heads; h++) factor[h] = query_words(words + h * step->dim, q + h * step->dim, step->dim);
  switch (heads) {
    case 1: logits(step, words, factor, 1); break;
    case 2: logits(step, words, factor, 2); break;
    case 3: logits(step, words, factor, 3); break;
    default: logits(step, words, factor, 4);
  }
}

/* Probabilities times the scales of their rows as words, those of two neighbouring rows side by side: words[rows / 2][width]. factor: what a
 * head's words are to be multiplied by; NaN where a product is no number. */
RKV_INLINE void probability_words(uint32_t *words, float *factor /*[4]*/, const rkv_step *step, const float *scale, int32_t width) {
  const int32_t n = step->rows * width;
  rkv_vec largest = {0}, zero = {0};
  float *s = step->s, lanes[RKV_LANES], inverse[4];
  int32_t i = 0;
  for (; i < n; i += RKV_LANES) {
    const rkv_vec p = rkv_load(s + i) * of_rows(scale + i / width, width);
    rkv_store(s + i, p);
    zero += p * rkv_set1(0);
    largest = rkv_max((rkv_vec)((rkv_ivec)p & 0x7fffffff), largest);
  }
  if (i % (2 * RKV_LANES)) rkv_store(s + i, (rkv_vec){0});
  rkv_store(lanes, largest);
  for (int32_t h = 0; h < width; h++) {
    float most = 0;
    for (int32_t l = h; l < RKV_LANES; l += width) most = lanes[l] > most ? lanes[l] : most;
    const int32_t is_number = most < INFINITY;
    inverse[h] = is_number && most > 1e-30f ? LARGEST / most : 0;
    factor[h] = is_number ? most / LARGEST : NAN;
  }
  rkv_store(lanes, zero);
  for (int32_t l = 0; l < RKV_LANES; l++) factor[l % width] += lanes[l];
  const rkv_vec inverses = of_heads(inverse, width);
  for (i = 0; i < n; i += 2 * RKV_LANES) {
    const rkv_ivec a = rkv_round(rkv_load(s + i) * inverses), b = rkv_round(rkv_load(s + i + RKV_LANES) * inverses);
    rkv_ivec even, odd;
    if (width == 4) {
      even = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
      odd = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    } else if (width == 2) {
      even = __builtin_shufflevector(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29);
      odd = __builtin_shufflevector(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
    } else {
      even = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
      odd = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    }
    const rkv_ivec pairs = (even & 0xffff) | odd << 16;
    memcpy(words + i / 2, &pairs, sizeof pairs);
  }
}

/* sums[heads][d .. d + 32 blocks) */
RKV_INLINE void weigh(const rkv_step *step, const uint32_t *words, const float *factor, int32_t d, int32_t heads, int32_t blocks) {
  const int32_t width = WIDTH(heads), dim = step->dim;
  const size_t bytes = rkv_row_bytes(RKV_Q8, dim);
  rkv_ivec sum[4][4];
  RKV_UNROLL for (int32_t h = 0; h < heads; h++)
    RKV_UNROLL for (int32_t i = 0; i < 2 * blocks; i++) sum[h][i] = (rkv_ivec){0};
  for (int32_t j = 0; j < step->rows; j += 2) {
    const char *a = step->values + (size_t)step->list[j] * bytes + d, *b = step->values + (size_t)step->list[j + 1] * bytes + d;
    rkv_ivec v[4];
    RKV_UNROLL for (int32_t i = 0; i < blocks; i++) {
      const rkv_ivec first = rkv_widen_bytes(a + i * 2 * RKV_LANES), second = rkv_widen_bytes(b + i * 2 * RKV_LANES);
      v[2 * i] = rkv_weave_low(first, second);
      v[2 * i + 1] = rkv_weave_high(first, second);
    }
    RKV_UNROLL for (int32_t h = 0; h < heads; h++)
      RKV_UNROLL for (int32_t i = 0; i < 2 * blocks; i++) sum[h][i] = rkv_add_words(sum[h][i], v[i], rkv_set1_word(words + j / 2 * width + h));
  }
  RKV_UNROLL for (int32_t h = 0; h < heads; h++)
    RKV_UNROLL for (int32_t i = 0; i < blocks; i++) {
      const rkv_ivec low = sum[h][2 * i], high = sum[h][2 * i + 1];          /* fours of channels, in turn */
      const rkv_ivec first = __builtin_shufflevector(low, high, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
      const rkv_ivec second = __builtin_shufflevector(low, high, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
      float *to = step->sums + h * (dim + 2) + d + i * 2 * RKV_LANES;
      rkv_store(to, __builtin_convertvector(first, rkv_vec) * rkv_set1(factor[h]));
      rkv_store(to + RKV_LANES, __builtin_convertvector(second, rkv_vec) * rkv_set1(factor[h]));
    }
}

RKV_INLINE void weigh_all(const rkv_step *step, const float *scale, int32_t heads) {
  uint32_t words[(RKV_PIECE / 2 + 2 * RKV_LANES) * 4];
  float factor[4];
  probability_words(words, factor, step, scale, WIDTH(heads));
  int32_t d = 0;
  for (; d + 4 * RKV_LANES <= step->dim; d += 4 * RKV_LANES) weigh(step, words, factor, d, heads, 2);
  for (; d < step->dim; d += 2 * RKV_LANES) weigh(step, words, factor, d, heads, 1);
}

void RKV_FN(rkv_word_weigh)(const rkv_step *step, int32_t heads) {
  float scale[RKV_PIECE + 3 * RKV_LANES];
  for (int32_t j = 0; j < step->rows; j += BLOCK) row_scales(scale + j, step->values, step, j);
  switch (heads) {
    case 1: weigh_all(step, scale, 1); break;
    case 2: weigh_all(step, scale, 2); break;
    case 3: weigh_all(step, scale, 3); break;
    default: weigh_all(step, scale, 4);
  }
}
#endif
