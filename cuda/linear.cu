/* linear.cu: products with weights as files hold them (rows padded to 16 bytes). Decoding reads each weight once for up to RKV_FEW rows of x,
 * so `few` is bound by memory: a warp makes an output row, each lane taking 8 weights in turn. A row's sum runs in the same order whatever
 * its neighbours are. `many` is for prefill: 64 x 64 outputs a block. */
#include "common.cuh"
#include "quant.cuh"

/* ---- eight weights as f32. k is a multiple of 8; cols of what is quantised is one of 32 or 256. ---- */

DEVICE void quant8(float *w, int type, const unsigned char *row, int k) {
  if (type == RKV_WEIGHT_Q8_0) {
    const unsigned char *b = row + k / 32 * 34;
    const float d = half_at(b);
    for (int i = 0; i < 8; i++) w[i] = d * (float)(signed char)b[2 + k % 32 + i];
  } else if (type == RKV_WEIGHT_Q4_0) {
    const unsigned char *b = row + k / 32 * 18;
    const float d = half_at(b);
    for (int i = 0; i < 8; i++) w[i] = d * (float)((b[2 + k % 16 + i] >> (k % 32 / 16 * 4) & 15) - 8);
  } else if (type >= RKV_WEIGHT_Q4_1) {
    for (int i = 0; i < 8; i++) w[i] = small_block_weight(type, row, k + i);
  } else if (type == RKV_WEIGHT_Q6_K) {
    const unsigned char *b = row + k / 256 * 210;
    const int part = k % 256 / 32, run = part % 4, i0 = k % 32;
    const float d = half_at(b + 208) * (float)(signed char)b[192 + k % 256 / 16];
    const unsigned char *low = b + part / 4 * 64 + run % 2 * 32 + i0, *upper = b + 128 + part / 4 * 32 + i0;
    for (int i = 0; i < 8; i++) w[i] = d * (float)(((low[i] >> run / 2 * 4 & 15) | (upper[i] >> run * 2 & 3) << 4) - 32);
  } else {
    const int is_five = type == RKV_WEIGHT_Q5_K, part = k % 256 / 32, i0 = k % 32;
    const unsigned char *b = row + k / 256 * (is_five ? 176 : 144);
    int scale, minimum;
    k_scale(b + 4, part, &scale, &minimum);
    const float d = half_at(b) * (float)scale, offset = half_at(b + 2) * (float)minimum;
    const unsigned char *low = b + (is_five ? 48 : 16) + part / 2 * 32 + i0;
    for (int i = 0; i < 8; i++) {
      int q = low[i] >> part % 2 * 4 & 15;
      if (is_five) q |= (b[16 + i0 + i] >> part & 1) << 4;
      w[i] = fmaf(d, (float)q, -offset);
    }
  }
}

DEVICE void two(float *w, unsigned pair, int is_bf16) {
  if (is_bf16) {
    w[0] = __uint_as_float(pair << 16);
    w[1] = __uint_as_float(pair & 0xffff0000u);
  } else {
    w[0] = __half2float(__ushort_as_half((unsigned short)pair));
    w[1] = __half2float(__ushort_as_half((unsigned short)(pair >> 16)));
  }
}

/* What lies past cols is padding: zeros. */
DEVICE void weight8(float *w, int type, const unsigned char *row, int k, int cols) {
  if (type == RKV_WEIGHT_F32) {
    const float4 a = __ldg((const float4 *)(row + (int64_t)k * 4)), b = k + 4 < cols ? __ldg((const float4 *)(row + (int64_t)k * 4 + 16)) : make_float4(0, 0, 0, 0);
    w[0] = a.x; w[1] = a.y; w[2] = a.z; w[3] = a.w; w[4] = b.x; w[5] = b.y; w[6] = b.z; w[7] = b.w;
  } else if (type == RKV_WEIGHT_F16 || type == RKV_WEIGHT_BF16) {
    const uint4 a = __ldg((const uint4 *)(row + (int64_t)k * 2));
    two(w, a.x, type == RKV_WEIGHT_BF16);
    two(w + 2, a.y, type == RKV_WEIGHT_BF16);
    two(w + 4, a.z, type == RKV_WEIGHT_BF16);
    two(w + 6, a.w, type == RKV_WEIGHT_BF16);
  } else {
    quant8(w, type, row, k);
  }
}

/* x[k .. k + 8), zeros past cols. */
DEVICE void input8(float *to, const float *x, int k, int cols, int is_aligned) {
  if (is_aligned && k + 8 <= cols) {
    const float4 a = *(const float4 *)(x + k), b = *(const float4 *)(x + k + 4);
    to[0] = a.x; to[1] = a.y; to[2] = a.z; to[3] = a.w; to[4] = b.x; to[5] = b.y; to[6] = b.z; to[7] = b.w;
  } else {
    for (int i = 0; i < 8; i++) to[i] = k + i < cols ? x[k + i] : 0;
  }
}
DEVICE int aligned(const rkv_product &p) { return p.x_stride % 4 == 0 && (uintptr_t)p.x % 16 == 0; }

DEVICE void finish_output(const rkv_product &p, int row, int col, float sum, float gated) {
  float *y = p.y + row * p.y_stride + col;
  if (p.mode == RKV_SWIGLU) *y = silu(sum) * gated;
  else if (p.mode == RKV_ADD) *y += p.bias ? sum + p.bias[col] : sum;
  else *y = sum;
}

/* ---- few rows of x ---- */

template <int N, int TYPE>
DEVICE void few_rows(const rkv_product &p, const void *w, int64_t stride, int type, int out, const int *rows, float *sum) {
  const unsigned char *weights = (const unsigned char *)w + out * stride;
  const int is_aligned = aligned(p);
#pragma unroll
  for (int n = 0; n < N; n++) sum[n] = 0;
#pragma unroll(N > 2 ? 2 : 4)
  for (int k = LANE * 8; k < p.cols; k += 256) {
    float a[8], b[8];
    weight8(a, TYPE >= 0 ? TYPE : type, weights, k, p.cols);
#pragma unroll
    for (int n = 0; n < N; n++) {
      if (rows[n] < 0) continue;
      input8(b, p.x + rows[n] * p.x_stride, k, p.cols, is_aligned);
#pragma unroll
      for (int i = 0; i < 8; i++) sum[n] = fmaf(a[i], b[i], sum[n]);
    }
  }
#pragma unroll
  for (int n = 0; n < N; n++) sum[n] = warp_sum(sum[n]);
}

template <int N, int TYPE>
DEVICE void few_product(const rkv_product &p, int out) {
  for (int next = 0; next < p.count;) {
    int rows[N];
    float sum[N], gated[N];
#pragma unroll
    for (int n = 0; n < N; n++) { /* the next rows that take part */
      while (next < p.count && p.active && !p.active[next]) next++;
      rows[n] = next < p.count ? next++ : -1;
    }
    if (rows[0] < 0) return;
    few_rows<N, TYPE>(p, p.w, p.stride, p.type, out, rows, sum);
    if (p.mode == RKV_SWIGLU) few_rows<N, TYPE>(p, p.gated, p.gated_stride, p.gated_type, out, rows, gated);
#pragma unroll
    for (int n = 0; n < N; n++)
      if (LANE == 0 && rows[n] >= 0) finish_output(p, rows[n], out, sum[n], p.mode == RKV_SWIGLU ? gated[n] : 0);
  }
}

template <int TYPE>
DEVICE void few_products(const rkv_products &all) {
  const rkv_product &p = all.of[blockIdx.y];
  const int out = blockIdx.x * RKV_FEW_WARPS + WARP;
  if (out >= p.rows) return;
  if (p.count == 1) few_product<1, TYPE>(p, out);
  else if (p.count <= 4) few_product<4, TYPE>(p, out);
  else few_product<RKV_FEW, TYPE>(p, out);
}

#define FEW(name, type) \
  KERNEL __launch_bounds__(32 * RKV_FEW_WARPS) kernel_few_##name(const __grid_constant__ rkv_products all) { begin(); few_products<type>(all); }
FEW(f32, RKV_WEIGHT_F32)
FEW(f16, RKV_WEIGHT_F16)
FEW(bf16, RKV_WEIGHT_BF16)
FEW(quant, -1)

/* ---- many rows of x: 64 x 64 outputs, 4 x 4 a thread; sums of 128 k are added in order, as on the CPU ---- */

#define DEPTH 32
#define TILE (RKV_MANY + 4)

template <int TYPE>
DEVICE void many_tile(const rkv_product &p, const void *w, int64_t stride, int type, float (*xs)[TILE], float (*ws)[TILE], float total[4][4]) {
  const int row0 = blockIdx.y * RKV_MANY, col0 = blockIdx.x * RKV_MANY, tx = THREAD % 16, ty = THREAD / 16, is_aligned = aligned(p);
  const int r = THREAD / 4, k8 = THREAD % 4 * 8; /* 256 threads: 64 rows by 4 runs of 8 k */
  float sum[4][4];
#pragma unroll
  for (int i = 0; i < 16; i++) total[i / 4][i % 4] = sum[i / 4][i % 4] = 0;
  for (int k0 = 0; k0 < p.cols; k0 += DEPTH) {
    float v[8];
    const int is_row = row0 + r < p.count && (!p.active || p.active[row0 + r]);
    for (int i = 0; i < 8; i++) v[i] = 0;
    if (is_row && k0 + k8 < p.cols) input8(v, p.x + (row0 + r) * p.x_stride, k0 + k8, p.cols, is_aligned);
    __syncthreads();
    for (int i = 0; i < 8; i++) xs[k8 + i][r] = v[i], v[i] = 0;
    if (col0 + r < p.rows && k0 + k8 < p.cols) weight8(v, TYPE >= 0 ? TYPE : type, (const unsigned char *)w + (col0 + r) * stride, k0 + k8, p.cols);
    for (int i = 0; i < 8; i++) ws[k8 + i][r] = v[i];
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < DEPTH; k++) {
      float a[4], b[4];
#pragma unroll
      for (int i = 0; i < 4; i++) a[i] = xs[k][ty * 4 + i], b[i] = ws[k][tx * 4 + i];
#pragma unroll
      for (int i = 0; i < 16; i++) sum[i / 4][i % 4] = fmaf(a[i / 4], b[i % 4], sum[i / 4][i % 4]);
    }
    if (k0 / DEPTH % 4 == 3 || k0 + DEPTH >= p.cols)
#pragma unroll
      for (int i = 0; i < 16; i++) total[i / 4][i % 4] += sum[i / 4][i % 4], sum[i / 4][i % 4] = 0;
  }
}

template <int TYPE>
DEVICE void many_product(const rkv_product &p) {
  __shared__ float xs[DEPTH][TILE], ws[DEPTH][TILE];
  const int tx = THREAD % 16, ty = THREAD / 16;
  float sum[4][4], gated[4][4];
  many_tile<TYPE>(p, p.w, p.stride, p.type, xs, ws, sum);
  if (p.mode == RKV_SWIGLU) many_tile<TYPE>(p, p.gated, p.gated_stride, p.gated_type, xs, ws, gated);
  for (int i = 0; i < 16; i++) {
    const int row = blockIdx.y * RKV_MANY + ty * 4 + i / 4, col = blockIdx.x * RKV_MANY + tx * 4 + i % 4;
    if (row < p.count && col < p.rows && (!p.active || p.active[row])) finish_output(p, row, col, sum[i / 4][i % 4], p.mode == RKV_SWIGLU ? gated[i / 4][i % 4] : 0);
  }
}

#define MANY(name, type) \
  KERNEL __launch_bounds__(256) kernel_many_##name(const __grid_constant__ rkv_product p) { begin(); many_product<type>(p); }
MANY(f32, RKV_WEIGHT_F32)
MANY(f16, RKV_WEIGHT_F16)
MANY(bf16, RKV_WEIGHT_BF16)
MANY(quant, -1)

/* ---- a weight of one row becomes f32 ---- */

KERNEL kernel_pack_vector(float *to, const unsigned char *from, int type, int cols, int rotated) {
  begin();
  const int half = rotated > 0 ? cols / rotated / 2 : 0;
  for (int k = blockIdx.x * THREADS + THREAD; k < cols; k += gridDim.x * THREADS) {
    float w[8];
    if (type <= RKV_WEIGHT_BF16) w[0] = raw_at(type == RKV_WEIGHT_F32 ? RKV_F32 : type == RKV_WEIGHT_F16 ? RKV_F16 : RKV_BF16, from, k);
    else quant8(w, type, from, k / 8 * 8);
    /* pairs that were neighbours are put back into halves */
    const int in_head = half ? k % (2 * half) : 0, place = half ? k - in_head + in_head % 2 * half + in_head / 2 : k;
    to[place] = type <= RKV_WEIGHT_BF16 ? w[0] : w[k % 8];
  }
}

/* A weight to f16, whatever blocks it lies in: for prefill's products. grid: rows. */
KERNEL kernel_unpack(__half *to, const unsigned char *from, int64_t stride, int type, int cols) {
  begin();
  for (int k = THREAD * 8; k < cols; k += THREADS * 8) {
    float w[8];
    weight8(w, type, from + blockIdx.x * stride, k, cols);
    for (int i = 0; i < 8; i++) to[(int64_t)blockIdx.x * cols + k + i] = __float2half_rn(w[i]);
  }
}
