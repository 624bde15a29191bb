/* linear.h: products, as the launches of ops ask for them. */
#ifndef RKV_CUDA_LINEAR_H
#define RKV_CUDA_LINEAR_H
#include "cuda.h"

#define RKV_TENSOR_ROWS 64   /* fewer rows of x do not fill a tile */
#define RKV_TENSOR_COLS 512  /* narrower models are quick anyway, and stay exact to f32 */

rkv_product rkv_product_of(const rkv_weight_data *w, const float *x, int64_t x_stride, float *y, int64_t y_stride, const int32_t *active, int32_t count, int32_t mode);
/* Products of the same x. */
void rkv_multiply(rkv_cuda *c, const rkv_product *products, int32_t count);

/* Whether a product can go on tensor cores, and which halves its x must be. */
bool rkv_fits_tensor(const rkv_cuda *c, const rkv_weight_data *w, int32_t count, const int32_t *active);
int32_t rkv_tensor_dtype(const rkv_weight_data *w);
/* x[count, cols] halves; y[count, rows] f32, or halves with RKV_SWIGLU and room for as many behind them. */
void rkv_tensor_multiply(rkv_cuda *c, const rkv_weight_data *w, const rkv_weight_data *gated, const void *x, void *y, const rkv_weight_data *bias, int32_t count, int32_t mode);
void rkv_norm_halves(rkv_cuda *c, void *to, const float *x, const rkv_weight_data *weight, int32_t count, float eps, int32_t dtype);
void rkv_to_halves(rkv_cuda *c, void *to, const float *x, int64_t count, int32_t dtype);
#endif
