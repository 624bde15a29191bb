/* linear_prepare.c: rows of x as products want them (linear.h), made once for all the products that read them. */
#include "linear_quant.h"

int32_t RKV_FN(rkv_form_for)(const rkv_weight_data *a, const rkv_weight_data *b, const rkv_weight_data *c) {
  const int32_t form = rkv_form_of(a->type);
  return (b && rkv_form_of(b->type) != form) || (c && rkv_form_of(c->type) != form) ? RKV_FORM_F32 : form;
}

int64_t RKV_FN(rkv_form_bytes)(int32_t form, int32_t cols) {
  if (form == RKV_FORM_F32) return (int64_t)cols * 4;
  if (form == RKV_FORM_PAIRS) return ((int64_t)cols + 1) / 2 * 4;
  return cols * (int64_t)sizeof(rkv_quad) + cols / RKV_PART * (int64_t)sizeof(rkv_x_block);
}

/* 32 floats to bytes and a scale, to the nearest. A block with a NaN or an infinity gets a NaN scale: it may not pass for a number. */
static void to_bytes(rkv_quad *quads, rkv_x_block *block, const float *x) {
  enum { VECS = RKV_PART / RKV_LANES };
  rkv_vec v[VECS];
  rkv_ivec size = {0}, lower = {0}, upper = {0};
  RKV_UNROLL for (int32_t i = 0; i < VECS; i++) {
    v[i] = rkv_load(x + i * RKV_LANES);
    size = rkv_int_max(size, (rkv_ivec)v[i] & 0x7fffffff);            /* as whole numbers, sizes have the same order, and NaN is the largest */
  }
  const int32_t bits = rkv_int_max_lane(size), is_number = bits < 0x7f800000;
  float largest;
  memcpy(&largest, &bits, 4);
  const rkv_vec inverse = rkv_set1(is_number && largest > 1e-30f ? 127 / largest : 0);
  RKV_UNROLL for (int32_t i = 0; i < VECS; i++) {
    const rkv_ivec q = is_number ? rkv_round(v[i] * inverse) : (rkv_ivec){0};
    rkv_store_quads(quads + i * RKV_LANES, q);
    if (i < VECS / 2) lower += q;
    else upper += q;
  }
  const int32_t less[2] = {-rkv_int_sum(lower), -rkv_int_sum(upper)};
  const float scale = is_number ? largest * (1.0f / 127) : NAN;
  *block = (rkv_x_block){scale, scale * (float)-(less[0] + less[1]), less[0] + less[1], {less[0], less[1]}};
}

#if RKV_PAIRS
static void to_pairs(uint32_t *pairs, const float *x, int32_t n) {
  for (; n > 0; n -= 2 * RKV_LANES, x += 2 * RKV_LANES, pairs += RKV_LANES) {
    const rkv_vec lower = rkv_load_part(x, rkv_min_int(n, RKV_LANES)), upper = rkv_load_part(x + RKV_LANES, rkv_max_int(0, rkv_min_int(n - RKV_LANES, RKV_LANES)));
    const rkv_uvec both = rkv_pairs_of(lower, upper);
    memcpy(pairs, &both, (size_t)rkv_min_int(RKV_LANES, (n + 1) / 2) * 4);
  }
}
#endif

/* A row of bytes: quads of all cols, then blocks. */
void RKV_FN(rkv_prepare)(void *row, const float *x, int32_t cols, int32_t k, int32_t n, int32_t form) {
  if (form == RKV_FORM_F32) {
    memcpy((float *)row + k, x, (size_t)n * 4);
    return;
  }
#if RKV_PAIRS
  if (form == RKV_FORM_PAIRS) {
    to_pairs((uint32_t *)row + k / 2, x, n);
    return;
  }
#endif
  rkv_quad *quads = row;
  rkv_x_block *blocks = (rkv_x_block *)(quads + cols);
  for (int32_t i = 0; i < n; i += RKV_PART) to_bytes(quads + k + i, &blocks[(k + i) / RKV_PART], x + i);
}
