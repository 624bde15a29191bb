/* chunk.cu: prefill attention. A block has 16 queries of one head and goes over tiles of 32 rows with a running softmax.
 * Source: FlashAttention (arXiv 2205.14135). */
#include "common.cuh"

#define QUERIES RKV_CHUNK_QUERIES
#define KEYS RKV_CHUNK_KEYS
#define LANES 8 /* threads of a query */

/* Rows [tile, tile + rows) as f32, zeros behind them. */
DEVICE void load_tile(float *to, const rkv_view &view, int64_t plane, int tile, int rows, int dim) {
  const int64_t bytes = row_bytes(view.dtype, dim);
  for (int i = THREAD; i < KEYS * dim; i += THREADS) {
    const int r = i / dim, d = i % dim;
    to[r * (dim + 1) + d] = r < rows ? at_row(view.dtype, (const char *)view.data + (plane + tile + r) * bytes, d, dim) : 0;
  }
}

/* dim <= LANES * SHARE. */
template <int SHARE>
DEVICE void chunk(const rkv_attend_chunk_args &a, const rkv_rows_data &kv, const rkv_layer_data &layer, float *shared) {
  const int dim = layer.head_dim, head = blockIdx.y, first = (gridDim.x - 1 - blockIdx.x) * QUERIES; /* the longest first */
  const int count = least(QUERIES, a.count - first), base = kv.row_end[a.slot] - a.count;
  const int64_t plane = ((int64_t)a.slot * kv.kv_heads + head / (layer.heads / layer.kv_heads)) * kv.capacity;
  const int *position = kv.position + plane;
  float *q = shared, *tile = q + QUERIES * (dim + 1), *s = tile + KEYS * (dim + 1); /* [QUERIES][dim + 1], [KEYS][dim + 1], [QUERIES][KEYS + 1] */
  const int mine = THREAD / LANES, lane = THREAD % LANES, self = base + first + mine;
  float acc[SHARE], top = -INFINITE, sum = 0;
#pragma unroll
  for (int j = 0; j < SHARE; j++) acc[j] = 0;
  for (int i = THREAD; i < QUERIES * dim; i += THREADS) {
    const int r = i / dim, d = i % dim;
    q[r * (dim + 1) + d] = r < count ? ((const float *)a.q.data)[((int64_t)(first + r) * layer.heads + head) * dim + d] : 0;
  }
  const int visible = base + first + count;
  for (int begin = 0; begin < visible; begin += KEYS) {
    const int rows = least(KEYS, visible - begin);
    __syncthreads();
    load_tile(tile, kv.keys, plane, begin, rows, dim);
    __syncthreads();
    float now = top;
#pragma unroll
    for (int j = 0; j < KEYS / LANES; j++) {
      const int r = lane + j * LANES, row = begin + r;
      float x = -INFINITE;
      if (mine < count && row <= self && (layer.window <= 0 || position[self] - position[row] < layer.window)) {
        float dot = 0;
        for (int d = 0; d < dim; d++) dot = fmaf(q[mine * (dim + 1) + d], tile[r * (dim + 1) + d], dot);
        x = cap_logit(dot, layer);
      }
      s[mine * (KEYS + 1) + r] = x;
      now = larger(x, now);
    }
    for (int i = LANES / 2; i > 0; i /= 2) now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, i));
    float part = 0;
#pragma unroll
    for (int j = 0; j < KEYS / LANES; j++) {
      float *x = s + mine * (KEYS + 1) + lane + j * LANES;
      *x = *x == -INFINITE ? 0 : expf(*x - now);
      part += *x;
    }
    for (int i = LANES / 2; i > 0; i /= 2) part += __shfl_xor_sync(0xffffffffu, part, i);
    const float old = top == -INFINITE ? 0 : expf(top - now);
    sum = fmaf(sum, old, part);
    top = now;
    __syncthreads();
    load_tile(tile, kv.values, plane, begin, rows, dim);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < SHARE; j++) acc[j] *= old;
    for (int r = 0; r < rows; r++) {
      const float p = s[mine * (KEYS + 1) + r];
      if (p == 0) continue;
#pragma unroll
      for (int j = 0; j < SHARE; j++)
        if (lane + j * LANES < dim) acc[j] = fmaf(p, tile[r * (dim + 1) + lane + j * LANES], acc[j]);
    }
  }
  if (mine >= count) return;
  const int64_t out = (int64_t)(first + mine) * layer.heads + head;
  const float inverse = sum == 0 ? 0 : 1 / sum;
#pragma unroll
  for (int j = 0; j < SHARE; j++)
    if (lane + j * LANES < dim) ((float *)a.attended.data)[out * dim + lane + j * LANES] = acc[j] * inverse;
  if (a.lse.data && lane == 0) ((float *)a.lse.data)[out] = sum == 0 ? -INFINITE : top + logf(sum);
}

/* grid: blocks of queries, heads. */
KERNEL __launch_bounds__(QUERIES * LANES) kernel_attend_chunk(const __grid_constant__ rkv_attend_chunk_args a, const __grid_constant__ rkv_rows_data kv,
                                                           const __grid_constant__ rkv_layer_data layer) {
  begin();
  extern __shared__ float shared[];
  if (layer.head_dim <= 64) chunk<8>(a, kv, layer, shared);
  else if (layer.head_dim <= 128) chunk<16>(a, kv, layer, shared);
  else if (layer.head_dim <= 256) chunk<32>(a, kv, layer, shared);
  else chunk<64>(a, kv, layer, shared);
}
