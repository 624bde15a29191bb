/* attention_words.c: decode attention over q8 rows where the instruction set has integer dot products: queries and probabilities become 16-bit
 * numbers with a scale for each head, so that products need no conversion. A query's element and a probability are off by at most 2^-16 of
 * the largest; the bytes themselves are by 2^-8.
 *
 * Logits: 16 rows are turned on their side, four channels of every row in a vector, so that a lane is a row and nothing is to be summed over
 * lanes; a query's number is multiplied as two bytes. Values: pairs of rows, as 16-bit numbers. */
#include "attention.h"
#if RKV_WORDS

#define WIDTH(heads) ((heads) == 3 ? 4 : (heads))
#define LARGEST 32639         /* 127 * 256 + 127: both bytes of a number are signed */
#define WIDEST 512           /* channels of a head */

/* Rows are looked up BLOCK at a time: their scales first, which stand apart from what the vectors load. */
#define BLOCK RKV_LANES
#define CHANNELS (4 * RKV_LANES)      /* of a row, turned on their side at once */

/* Scales of listed rows [j, j + BLOCK), of those there are; the others' are 0. */
static void row_scales(float *scale /*[BLOCK]*/, const char *plane, const rkv_step *step, int32_t j) {
  const size_t bytes = rkv_row_bytes(RKV_Q8, step->dim);
  const int32_t n = rkv_min_int(BLOCK, step->rows - j);
  for (int32_t i = 0; i < n; i++) scale[i] = rkv_q8_scale(plane + (size_t)step->list[j + i] * bytes, step->dim);
  for (int32_t i = n; i < BLOCK; i++) scale[i] = 0;
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

/* A query in whole numbers: 256 upper + lower, with zeros up to whole vectors; lanes begin with what unsigned keys will be too much by. */
typedef struct { int8_t upper[WIDEST], lower[WIDEST]; int32_t upper_less, lower_less; float step; } query;

/* step: what a number stands for; NaN where q holds what is no number. */
static void query_of(query *to, const float *q, int32_t dim) {
  rkv_ivec size = {0}, upper_sum = {0}, lower_sum = {0};
  for (int32_t d = 0; d < dim; d += RKV_LANES) size = rkv_int_max(size, (rkv_ivec)rkv_load(q + d) & 0x7fffffff);
  const int32_t bits = rkv_int_max_lane(size), is_number = bits < 0x7f800000;
  float largest;
  memcpy(&largest, &bits, 4);
  const rkv_vec inverse = rkv_set1(is_number && largest > 1e-30f ? LARGEST / largest : 0);
  for (int32_t d = 0; d < rkv_ceil_div(dim, CHANNELS) * CHANNELS; d += RKV_LANES) {
    const rkv_ivec word = is_number && d < dim ? rkv_round(rkv_load(q + d) * inverse) : (rkv_ivec){0};
    const rkv_ivec upper = (word + 128) >> 8, lower = word - (upper << 8);
    const rkv_bvec a = __builtin_convertvector(upper, rkv_bvec), b = __builtin_convertvector(lower, rkv_bvec);
    memcpy(to->upper + d, &a, sizeof a);
    memcpy(to->lower + d, &b, sizeof b);
    upper_sum += upper;
    lower_sum += lower;
  }
  to->upper_less = -128 * rkv_int_sum(upper_sum);
  to->lower_less = -128 * rkv_int_sum(lower_sum);
  to->step = is_number ? largest / LARGEST : NAN;
}

/* to[rows][width] = of[width] with rows in lanes. */
RKV_INLINE void store_rows(float *to, const rkv_vec *of, int32_t width) {
#define WEAVE_LOW(a, b) __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define WEAVE_HIGH(a, b) __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
  if (width == 1) {
    rkv_store(to, of[0]);
    return;
  }
  const rkv_vec even_low = WEAVE_LOW(of[0], of[width / 2]), even_high = WEAVE_HIGH(of[0], of[width / 2]);
  if (width == 2) {
    rkv_store(to, even_low);
    rkv_store(to + RKV_LANES, even_high);
    return;
  }
  const rkv_vec odd_low = WEAVE_LOW(of[1], of[3]), odd_high = WEAVE_HIGH(of[1], of[3]);
  rkv_store(to, WEAVE_LOW(even_low, odd_low));
  rkv_store(to + RKV_LANES, WEAVE_HIGH(even_low, odd_low));
  rkv_store(to + 2 * RKV_LANES, WEAVE_LOW(even_high, odd_high));
  rkv_store(to + 3 * RKV_LANES, WEAVE_HIGH(even_high, odd_high));
}

RKV_INLINE void logits(const rkv_step *step, const query *q, int32_t heads) {
  const int32_t width = WIDTH(heads), dim = step->dim;
  const size_t bytes = rkv_row_bytes(RKV_Q8, dim);
  float scale[BLOCK];
  for (int32_t j = 0; j < step->rows; j += BLOCK) {
    rkv_ivec upper[4], lower[4];
    rkv_vec s[4] = {{0}};
    if (step->cold) rkv_fetch_rows(step->keys, bytes, step->list, j + BLOCK, rkv_min_int(step->rows, j + 2 * BLOCK));
    rkv_fetch_rows(step->values, rkv_row_bytes(step->value_dtype, dim), step->list, j, rkv_min_int(step->rows, j + BLOCK));
    row_scales(scale, step->keys, step, j);
    RKV_UNROLL for (int32_t h = 0; h < heads; h++) {
      upper[h] = rkv_set1_word(&q[h].upper_less);
      lower[h] = rkv_set1_word(&q[h].lower_less);
    }
    for (int32_t d = 0; d < dim; d += CHANNELS) {
      rkv_vec quads[RKV_LANES];
      RKV_UNROLL for (int32_t r = 0; r < BLOCK; r++) quads[r] = rkv_load_bits(step->keys + (size_t)step->list[j + r] * bytes + d, rkv_min_int(CHANNELS, dim - d));
      rkv_transpose(quads);
      RKV_UNROLL for (int32_t c = 0; c < RKV_LANES; c++) {
        const rkv_quads k = rkv_quads_of((rkv_uvec)quads[c] ^ 0x80808080, 1);
        RKV_UNROLL for (int32_t h = 0; h < heads; h++) {
          upper[h] = rkv_add_quads(upper[h], k, q[h].upper + d + 4 * c, 1);
          lower[h] = rkv_add_quads(lower[h], k, q[h].lower + d + 4 * c, 1);
        }
      }
    }
    const rkv_vec scales = rkv_load(scale) * rkv_set1(step->scale);
    RKV_UNROLL for (int32_t h = 0; h < heads; h++)
      s[h] = rkv_fma(__builtin_convertvector(upper[h], rkv_vec), rkv_set1(256), __builtin_convertvector(lower[h], rkv_vec)) * rkv_set1(q[h].step) * scales;
    store_rows(step->s + j * width, s, width);
  }
}

void RKV_FN(rkv_word_logits)(const rkv_step *step, const float *q, int32_t heads) {
  query queries[4];
  for (int32_t h = 0; h < heads; h++) query_of(&queries[h], q + h * step->dim, step->dim);
  switch (heads) {
    case 1: logits(step, queries, 1); break;
    case 2: logits(step, queries, 2); break;
    case 3: logits(step, queries, 3); break;
    default: logits(step, queries, 4);
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
    if (d == 0 && j % 4 == 0) rkv_fetch_rows(step->keys, rkv_row_bytes(step->key_dtype, dim), step->next, j, rkv_min_int(step->next_rows, j + 4));
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
