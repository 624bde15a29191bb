/* linear_quant.c: products with quantised weights. The blocks are taken apart in registers; activations and sums are f32, in the order that
 * linear.h promises. */
#include "linear_quant.h"

/* c[rows, vecs * RKV_LANES] for outputs from `col` on, over all of k. type, rows and vecs are constants. */
RKV_INLINE void few(float *c, const char *panels, size_t panel_bytes, int32_t col, const float *const *x, int32_t cols, int32_t type, int32_t rows, int32_t vecs) {
  const int32_t within = col % RKV_PANEL;
  for (int32_t k0 = 0; k0 < cols; k0 += RKV_DEPTH) {
    const int32_t end = rkv_min_int(cols, k0 + RKV_DEPTH);
    rkv_vec sum[4][4], scale[4], offset[4];
    RKV_UNROLL for (int32_t i = 0; i < rows; i++)
      RKV_UNROLL for (int32_t v = 0; v < vecs; v++) sum[i][v] = (rkv_vec){0};
    for (int32_t k = k0; k < end; k += RKV_PART) {
      rkv_part part[4];
      RKV_UNROLL for (int32_t v = 0; v < vecs; v++) part[v] = rkv_part_at(type, panels + (size_t)((col + v * RKV_LANES) / RKV_PANEL) * panel_bytes, k);
      for (int32_t group = 0; group < 4; group++) {
        if (group == 0 || (type == RKV_WEIGHT_Q6_K && group == 2))
          RKV_UNROLL for (int32_t v = 0; v < vecs; v++) rkv_part_scale(type, part[v], group / 2, (within + v * RKV_LANES) % RKV_PANEL, &scale[v], &offset[v]);
        RKV_UNROLL for (int32_t n = 0; n < 8; n++) {
          rkv_vec w[4];
          RKV_UNROLL for (int32_t v = 0; v < vecs; v++)
            w[v] = rkv_part_weight(type, rkv_part_q(type, part[v], group, n, (within + v * RKV_LANES) % RKV_PANEL), scale[v], offset[v]);
          RKV_UNROLL for (int32_t i = 0; i < rows; i++) {
            const rkv_vec a = rkv_set1(x[i][k + group * 8 + n]);
            RKV_UNROLL for (int32_t v = 0; v < vecs; v++) sum[i][v] = rkv_fma(a, w[v], sum[i][v]);
          }
        }
      }
    }
    RKV_UNROLL for (int32_t i = 0; i < rows; i++)
      RKV_UNROLL for (int32_t v = 0; v < vecs; v++) {
        float *to = c + i * RKV_BLOCK_COLS + col + v * RKV_LANES;
        rkv_store(to, k0 ? rkv_load(to) + sum[i][v] : sum[i][v]);
      }
  }
}

RKV_INLINE void few_panels(float *c, const char *panels, size_t panel_bytes, int32_t outputs, const float *const *x, int32_t cols, int32_t type, int32_t rows) {
  const int32_t vecs = RKV_LANES == 16 && rows == 1 ? 4 : 2;          /* two panels at a time where scales and sums find registers */
  int32_t col = 0;
  for (; col + vecs * RKV_LANES <= outputs; col += vecs * RKV_LANES) few(c, panels, panel_bytes, col, x, cols, type, rows, vecs);
  for (; col < outputs; col += 2 * RKV_LANES) few(c, panels, panel_bytes, col, x, cols, type, rows, 2);
}

#define OF_ROWS(type)                                                                      \
  switch (rows) {                                                                          \
    case 1: few_panels(c, panels, panel_bytes, outputs, x, cols, type, 1); break;          \
    case 2: few_panels(c, panels, panel_bytes, outputs, x, cols, type, 2); break;          \
    case 3: few_panels(c, panels, panel_bytes, outputs, x, cols, type, 3); break;          \
    default: few_panels(c, panels, panel_bytes, outputs, x, cols, type, 4); break;         \
  }                                                                                        \
  break;

void RKV_FN(rkv_quant_rows)(float *c, const char *panels, size_t panel_bytes, int32_t outputs, const float *const *x, int32_t cols, int32_t type, int32_t rows) {
  switch (type) {
    case RKV_WEIGHT_Q8_0: OF_ROWS(RKV_WEIGHT_Q8_0)
    case RKV_WEIGHT_Q4_0: OF_ROWS(RKV_WEIGHT_Q4_0)
    case RKV_WEIGHT_Q4_K: OF_ROWS(RKV_WEIGHT_Q4_K)
    case RKV_WEIGHT_Q5_K: OF_ROWS(RKV_WEIGHT_Q5_K)
    default: OF_ROWS(RKV_WEIGHT_Q6_K)
  }
}

/* ---- to f32 -------------------------------------------------------------------------------------------------------------------------- */

/* A part, rows [row, row + RKV_LANES): to[32, stride]. */
RKV_INLINE void unpack_part(float *to, int32_t stride, const char *panel, int32_t type, int32_t k, int32_t row) {
  const rkv_part part = rkv_part_at(type, panel, k);
  rkv_vec scale, offset;
  for (int32_t group = 0; group < 4; group++) {
    if (group % 2 == 0) rkv_part_scale(type, part, group / 2, row, &scale, &offset);
    RKV_UNROLL for (int32_t n = 0; n < 8; n++)
      rkv_store(to + (group * 8 + n) * stride, rkv_part_weight(type, rkv_part_q(type, part, group, n, row), scale, offset));
  }
}

static void unpack(float *to, int32_t stride, const char *panel, int32_t type, int32_t k, int32_t row) {
  switch (type) {
    case RKV_WEIGHT_Q8_0: unpack_part(to, stride, panel, RKV_WEIGHT_Q8_0, k, row); break;
    case RKV_WEIGHT_Q4_0: unpack_part(to, stride, panel, RKV_WEIGHT_Q4_0, k, row); break;
    case RKV_WEIGHT_Q4_K: unpack_part(to, stride, panel, RKV_WEIGHT_Q4_K, k, row); break;
    case RKV_WEIGHT_Q5_K: unpack_part(to, stride, panel, RKV_WEIGHT_Q5_K, k, row); break;
    default: unpack_part(to, stride, panel, RKV_WEIGHT_Q6_K, k, row);
  }
}

void RKV_FN(rkv_quant_unpack)(float *b, const char *panel, int32_t type, int32_t k, int32_t depth) {
  for (int32_t i = 0; i < depth; i += RKV_PART)
    for (int32_t row = 0; row < RKV_PANEL; row += RKV_LANES) unpack(b + i * RKV_PANEL + row, RKV_PANEL, panel, type, k + i, row);
}

void RKV_FN(rkv_quant_unpack_row)(float *to, const char *panel, int32_t type, int32_t row, int32_t cols) {
  float part[RKV_PART * RKV_LANES];
  for (int32_t k = 0; k < cols; k += RKV_PART) {
    unpack(part, RKV_LANES, panel, type, k, row / RKV_LANES * RKV_LANES);
    for (int32_t i = 0; i < RKV_PART; i++) to[k + i] = part[i * RKV_LANES + row % RKV_LANES];
  }
}
