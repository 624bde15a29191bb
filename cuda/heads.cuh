/* heads.cuh: what a layer's products leave of q, k and v becomes heads: bias, norm, rotation; keys and values go to the KV rows. */
#ifndef RKV_HEADS_CUH
#define RKV_HEADS_CUH
#include "common.cuh"

/* A warp finishes a head in shared memory: bias, norm, rotation by pairs (i, i + half). Source: RoFormer (arXiv 2104.09864), in halves. Loads of
 * 128 channels go out together. */
DEVICE void finish_head(float *head, int dim, int half, const float *x, const float *bias, const float *norm, const float *rotation, float eps) {
  float sum = 0;
#pragma unroll 1
  for (int first = LANE; first < dim; first += 128) {
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = first + 32 * i < dim ? bias ? x[first + 32 * i] + bias[first + 32 * i] : x[first + 32 * i] : 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (first + 32 * i < dim) head[first + 32 * i] = v[i];
      sum = fmaf(v[i], v[i], sum);
    }
  }
  if (norm) {
    const float factor = 1.0f / sqrtf(warp_sum(sum) / (float)dim + eps);
#pragma unroll 1
    for (int i = LANE; i < dim; i += 32) head[i] = head[i] * factor * norm[i];
  }
  __syncwarp();
#pragma unroll 1
  for (int first = LANE; first < half && rotation; first += 64)
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const int i = first + 32 * j;
      if (i >= half) break;
      const float a = head[i], b = head[half + i], c = rotation[i], s = rotation[half + i];
      head[i] = fmaf(a, c, -(b * s));
      head[half + i] = fmaf(b, c, a * s);
    }
  __syncwarp();
}

/* Head h of row `row`, of the query heads, then the keys', then the values'; a warp makes it in shared memory. dim: of a head. rotation[ropeDim], of
 * the row. */
DEVICE void make_head(float *head, int dim, const rkv_heads &a, const rkv_layer_data &layer, int row, int h, const float *rotation) {
  const int is_query = h < layer.heads, is_value = h >= layer.heads + layer.kv_heads, g = h - (is_query ? 0 : is_value ? layer.heads + layer.kv_heads : layer.heads);
  const float *x = is_query ? a.q : is_value ? a.v : a.k, *bias = is_query ? a.q_bias : is_value ? a.v_bias : a.k_bias;
  x += ((int64_t)row * (is_query ? layer.heads : layer.kv_heads) + g) * dim;
  finish_head(head, dim, layer.rope_dim / 2, x, bias ? bias + g * dim : NULL, is_query ? a.q_norm : is_value ? NULL : a.k_norm, layer.rope_dim && !is_value ? rotation : NULL, layer.eps);
}

/* A warp writes a query in place. */
DEVICE void keep_query(const float *head, int dim, const rkv_heads &a, const rkv_layer_data &layer, int row, int h) {
  put_row(RKV_F32, a.q + ((int64_t)row * layer.heads + h) * dim, head, dim);
}
/* A warp writes a key, with its position, or a value to row `to` of KV head g. */
DEVICE void keep_row(const float *head, int dim, int dtype, const rkv_rows_data &kv, int slot, int64_t to, int position, int g, int is_value) {
  const int64_t place = ((int64_t)slot * kv.kv_heads + g) * kv.capacity + to;
  put_row(dtype, (char *)(is_value ? kv.values.data : kv.keys.data) + place * row_bytes(dtype, dim), head, dim);
  if (!is_value && LANE == 0) kv.position[place] = position;
}

#endif
