/* dots.h: one query against RKV_LANES rows at a time, for everything that ranks rows or centroids. */
#ifndef RKV_DOTS_H
#define RKV_DOTS_H
#include "rowtypes.h"

/* Adds query channels [k, k + vecs * RKV_LANES) of RKV_LANES rows, `stride` bytes apart; rows past `last` repeat it, so that a block at
 * the end of a tensor reads nothing behind it. The query's vectors stay in registers while the rows pass by. */
#define RKV_DOTS_STEP(vecs)                                                                                                   \
  for (; k + (vecs) * RKV_LANES <= dim; k += (vecs) * RKV_LANES) {                                                            \
    rkv_vec part[vecs];                                                                                                       \
    RKV_UNROLL for (int32_t j = 0; j < (vecs); j++) part[j] = rkv_load(q + k + j * RKV_LANES);                                \
    const char *row = rows;                                                                                                   \
    RKV_UNROLL for (int32_t i = 0; i < RKV_LANES; i++) {                                                                      \
      RKV_UNROLL for (int32_t j = 0; j < (vecs); j++) sum[i] = rkv_fma(part[j], rkv_row_load(dtype, row, k + j * RKV_LANES), sum[i]); \
      row += i < last ? stride : 0;                                                                                           \
    }                                                                                                                         \
  }

/* Lane i: q . row i, in one order of summation whatever the block. `dtype` is a constant at every call; a q8 row's scale is included. */
RKV_INLINE rkv_vec rkv_dots(const float *q /*[dim]*/, const char *rows, size_t stride, int32_t last, int32_t dim, int32_t dtype) {
  rkv_vec sum[RKV_LANES];
  RKV_UNROLL for (int32_t i = 0; i < RKV_LANES; i++) sum[i] = (rkv_vec){0};
  int32_t k = 0;
  RKV_DOTS_STEP(4)
  RKV_DOTS_STEP(1)
  if (k < dim) {
    const rkv_vec part = rkv_load_part(q + k, dim - k);
    const char *row = rows;
    RKV_UNROLL for (int32_t i = 0; i < RKV_LANES; i++) {
      sum[i] = rkv_fma(part, rkv_row_load_part(dtype, row, k, dim - k), sum[i]);
      row += i < last ? stride : 0;
    }
  }
  const rkv_vec dots = rkv_sum_rows(sum);
  if (dtype != RKV_Q8) return dots;
  rkv_vec scale;
  const char *row = rows;
  RKV_UNROLL for (int32_t i = 0; i < RKV_LANES; i++) {
    scale[i] = rkv_q8_scale(row, dim);
    row += i < last ? stride : 0;
  }
  return dots * scale;
}
#endif
