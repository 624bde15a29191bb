/* attention_words.c: decode attention over q8 rows where the instruction set has integer dot products: queries and probabilities become 16-bit
 * numbers with a scale for each head, so that products need no conversion. A query's element and a probability are off by at most 2^-16 of
 * the largest; the bytes themselves are by 2^-8.
 *
 * Logits: 16 rows are turned on their side, four channels of every row in a vector, so that a lane is a row and nothing is to be summed over
 * lanes; a query's number is multiplied as two bytes. Values: pairs of rows, as 16-bit numbers. */
#include "attention.h"
#if RKV_WORDS

#define LARGEST 32639         /* 127 * 256 + 127: both bytes of a number are signed */
#define WIDEST 512           /* channels of a head */
#define STRIDE (RKV_PIECE + RKV_LANES) /* from one head's logits, and words, to the next's */

#define BLOCK RKV_LANES                /* rows that are turned on their side at once */
#define CHANNELS (4 * RKV_LANES)       /* of them */

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

/* s[heads][rows] = scale * q . k in units of ln 2, since 2^x is cheaper than e^x, and in largest[heads] what is largest in each lane; what fills
 * up the last vector is -inf. offset: of the rows in their plane. */
RKV_INLINE void logits(const rkv_step *step, const size_t *offset, const query *q, rkv_vec *largest, int32_t heads) {
  const int32_t dim = step->dim;
  const size_t bytes = rkv_row_bytes(RKV_Q8, dim);
  const float cap = step->soft_cap;
  const rkv_vec scale = rkv_set1(cap > 0 ? step->scale : step->scale * RKV_LOG2_E);
  RKV_UNROLL for (int32_t h = 0; h < heads; h++) largest[h] = rkv_set1(-INFINITY);
  for (int32_t j = 0; j < step->rows; j += BLOCK) {
    rkv_ivec upper[4], lower[4];
    if (step->cold) rkv_fetch_rows(step->keys, bytes, step->list, j + BLOCK, rkv_min_int(step->rows, j + 2 * BLOCK));
    rkv_fetch_rows(step->values, bytes, step->list, j, rkv_min_int(step->rows, j + BLOCK));
    RKV_UNROLL for (int32_t h = 0; h < heads; h++) {
      upper[h] = rkv_set1_word(&q[h].upper_less);
      lower[h] = rkv_set1_word(&q[h].lower_less);
    }
    for (int32_t d = 0; d < dim; d += CHANNELS) {
      rkv_vec quads[RKV_LANES];
      RKV_UNROLL for (int32_t r = 0; r < BLOCK; r++) quads[r] = rkv_load_bits(step->keys + offset[j + r] + d, rkv_min_int(CHANNELS, dim - d));
      rkv_transpose(quads);
      RKV_UNROLL for (int32_t c = 0; c < RKV_LANES; c++) {
        const rkv_quads k = rkv_quads_of((rkv_uvec)quads[c] ^ 0x80808080, 1);
        RKV_UNROLL for (int32_t h = 0; h < heads; h++) {
          upper[h] = rkv_add_quads(upper[h], k, q[h].upper + d + 4 * c, 1);
          lower[h] = rkv_add_quads(lower[h], k, q[h].lower + d + 4 * c, 1);
        }
      }
    }
    const rkv_vec scales = rkv_load_apart(step->keys + dim, offset + j) * scale;
    RKV_UNROLL for (int32_t h = 0; h < heads; h++) {
      rkv_vec s = rkv_fma(__builtin_convertvector(upper[h], rkv_vec), rkv_set1(256), __builtin_convertvector(lower[h], rkv_vec)) * rkv_set1(q[h].step) * scales;
      if (cap > 0) s = rkv_soft_cap(s, cap) * rkv_set1(RKV_LOG2_E);
      if (step->rows - j < BLOCK) s = rkv_first(s, step->rows - j, rkv_set1(-INFINITY));
      rkv_store(step->s + h * STRIDE + j, s);
      largest[h] = rkv_max(s, largest[h]);
    }
  }
}

/* Logits to probabilities, and these times the scales of the values' rows to words: words[heads][rows]. Largest logit and sum of each head go
 * behind its values. factor: what a head's words are to be multiplied by; NaN where a product is no number. */
RKV_INLINE void soften(uint16_t *words, float *factor, const rkv_step *step, const size_t *offset, const rkv_vec *largest, int32_t heads) {
  rkv_vec sum[4], all[4], most[4], shift[4];
  RKV_UNROLL for (int32_t h = 0; h < heads; h++) {
    shift[h] = rkv_set1(rkv_max_lane(largest[h]));
    sum[h] = all[h] = most[h] = (rkv_vec){0};
  }
  for (int32_t j = 0; j < step->rows; j += RKV_LANES) {
    const rkv_vec scales = rkv_load_apart(step->values + step->dim, offset + j);
    RKV_UNROLL for (int32_t h = 0; h < heads; h++) {
      const rkv_vec p = rkv_exp2(rkv_load(step->s + h * STRIDE + j) - shift[h]), scaled = p * scales;
      rkv_store(step->s + h * STRIDE + j, scaled);
      sum[h] += p;
      all[h] += scaled;                                      /* no number, as soon as one is none */
      most[h] = rkv_max(scaled, most[h]);
    }
  }
  RKV_UNROLL for (int32_t h = 0; h < heads; h++) {
    float *s = step->s + h * STRIDE, *behind = step->sums + h * (step->dim + 2) + step->dim;
    const float size = rkv_max_lane(most[h]), is_number = rkv_sum(all[h]) * 0;
    const rkv_vec inverse = rkv_set1(size > 1e-30f ? LARGEST / size : 0);
    for (int32_t j = 0; j < step->rows; j += RKV_LANES) {
      const rkv_hvec word = __builtin_convertvector((rkv_uvec)rkv_round(rkv_load(s + j) * inverse), rkv_hvec);
      memcpy(words + h * STRIDE + j, &word, sizeof word);
    }
    behind[0] = shift[h][0] * (1 / RKV_LOG2_E);
    behind[1] = rkv_sum(sum[h]);
    factor[h] = size / LARGEST + is_number;
  }
}

/* sums[heads][d .. d + 32 blocks) */
RKV_INLINE void weigh(const rkv_step *step, const size_t *offset, const uint16_t *words, const float *factor, int32_t d, int32_t heads, int32_t blocks) {
  const int32_t dim = step->dim;
  const size_t bytes = rkv_row_bytes(RKV_Q8, dim);
  rkv_ivec sum[4][4];
  RKV_UNROLL for (int32_t h = 0; h < heads; h++)
    RKV_UNROLL for (int32_t i = 0; i < 2 * blocks; i++) sum[h][i] = (rkv_ivec){0};
  for (int32_t j = 0; j < step->rows; j += 2) {
    if (d == 0 && j % 4 == 0) rkv_fetch_rows(step->keys, bytes, step->next, j, rkv_min_int(step->next_rows, j + 4));
    const char *a = step->values + offset[j] + d, *b = step->values + offset[j + 1] + d;
    rkv_ivec v[4];
    RKV_UNROLL for (int32_t i = 0; i < blocks; i++) {
      const rkv_ivec first = rkv_widen_bytes(a + i * 2 * RKV_LANES), second = rkv_widen_bytes(b + i * 2 * RKV_LANES);
      v[2 * i] = rkv_weave_low(first, second);
      v[2 * i + 1] = rkv_weave_high(first, second);
    }
    RKV_UNROLL for (int32_t h = 0; h < heads; h++)
      RKV_UNROLL for (int32_t i = 0; i < 2 * blocks; i++) sum[h][i] = rkv_add_words(sum[h][i], v[i], rkv_set1_word(words + h * STRIDE + j));
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

RKV_INLINE void attend(const rkv_step *step, const query *q, int32_t heads) {
  uint16_t words[4 * STRIDE];
  size_t offset[STRIDE];
  float factor[4];
  rkv_vec largest[4];
  for (int32_t j = 0; j < step->rows + BLOCK; j++) offset[j] = (size_t)step->list[j] * rkv_row_bytes(RKV_Q8, step->dim);
  logits(step, offset, q, largest, heads);
  soften(words, factor, step, offset, largest, heads);
  int32_t d = 0;
  for (; d + 4 * RKV_LANES <= step->dim; d += 4 * RKV_LANES) weigh(step, offset, words, factor, d, heads, 2);
  for (; d < step->dim; d += 2 * RKV_LANES) weigh(step, offset, words, factor, d, heads, 1);
}

void RKV_FN(rkv_attend_words)(const rkv_step *step, const float *q, int32_t heads) {
  query queries[4];
  for (int32_t h = 0; h < heads; h++) query_of(&queries[h], q + h * step->dim, step->dim);
  switch (heads) {
    case 1: attend(step, queries, 1); break;
    case 2: attend(step, queries, 2); break;
    case 3: attend(step, queries, 3); break;
    default: attend(step, queries, 4);
  }
}
#endif
