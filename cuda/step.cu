/* step.cu: products of a step: weights of 16 bits with up to eight rows of x, on tensor cores, because that leaves the bandwidth to the
 * weights. x stays exact: a number of f32 is the sum of three halves (24 bits of bf16; of f16 what its range allows), and each is multiplied
 * by itself. A block makes 16 outputs for all slots; its eight warps share the columns. Weights go straight to registers: a lane takes 16
 * bytes of a row, and which k a product calls its own is the same for weights and x. A slot is a column of its own: no neighbour changes it. */
#include "mma.cuh"

#define WARPS_OF 8
#define PART 128 /* columns that a warp takes at a time: four loads of 16 bytes for each of its rows */

/* Row n among those that take part, or -1. */
DEVICE int nth_active(const rkv_product &p, int n) {
  const unsigned low = __ballot_sync(0xffffffffu, LANE < p.count && (!p.active || p.active[LANE]));
  const unsigned high = __ballot_sync(0xffffffffu, LANE + 32 < p.count && (!p.active || p.active[LANE + 32]));
  const int lows = __popc(low);
  if (n >= lows + __popc(high)) return -1;
  return n < lows ? (int)__fns(low, 0, n + 1) : 32 + (int)__fns(high, 0, n + 1 - lows);
}

template <int DTYPE>
DEVICE float rest_of(float x, float *half) {
  *half = DTYPE == RKV_BF16 ? __bfloat162float(__float2bfloat16_rn(x)) : __half2float(__float2half_rn(fminf(fmaxf(x, -65504.0f), 65504.0f)));
  return x - *half;
}

/* Two numbers as three pairs of halves. */
template <int DTYPE>
DEVICE void split(unsigned part[3], float a, float b) {
#pragma unroll
  for (int i = 0; i < 3; i++) {
    float x, y;
    a = rest_of<DTYPE>(a, &x);
    b = rest_of<DTYPE>(b, &y);
    part[i] = halves<DTYPE>(x, y);
  }
}

DEVICE uint4 weights_at(const void *w, int64_t stride, int row, int rows, int k) {
  return row < rows ? __ldcs((const uint4 *)((const char *)w + row * stride + k * 2)) : make_uint4(0, 0, 0, 0);
}

DEVICE float silu(float g) { return g / (1 + expf(-g)); }

/* Eight loads of 16 bytes: a lane's part of two rows (its own of the first and of the second eight) over 128 columns. */
typedef struct { uint4 of[4][2]; } part;
DEVICE void load_part(part &a, const void *w, int64_t stride, int row, int rows, int k0, int cols) {
#pragma unroll
  for (int s = 0; s < 4; s++)
#pragma unroll
    for (int h = 0; h < 2; h++) a.of[s][h] = weights_at(w, stride, row + 8 * h, k0 + s * 32 < cols ? rows : 0, k0 + s * 32 + LANE % 4 * 8);
}

/* total += 128 columns of weights times x. Short chains on the tensor cores, which cut sums off; the long sum is rounded. */
template <int DTYPE>
DEVICE void add_part(float total[4], const part &a, const float *x, int is_row, int k0, int cols) {
#pragma unroll
  for (int s = 0; s < 4; s++) {
    const int k = k0 + s * 32 + LANE % 4 * 8;
    float4 u = make_float4(0, 0, 0, 0), v = u;
    if (is_row && k < cols) {
      u = *(const float4 *)(x + k);
      v = *(const float4 *)(x + k + 4);
    }
    unsigned b[4][3];
    split<DTYPE>(b[0], u.x, u.y);
    split<DTYPE>(b[1], u.z, u.w);
    split<DTYPE>(b[2], v.x, v.y);
    split<DTYPE>(b[3], v.z, v.w);
    const unsigned one[4] = {a.of[s][0].x, a.of[s][1].x, a.of[s][0].y, a.of[s][1].y}, two[4] = {a.of[s][0].z, a.of[s][1].z, a.of[s][0].w, a.of[s][1].w};
    float c[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 2; i >= 0; i--) { /* the small parts first */
      multiply<DTYPE>(c, one, b[0][i], b[1][i]);
      multiply<DTYPE>(c, two, b[2][i], b[3][i]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) total[i] += c[i];
  }
}

/* With `GATED` four warps take one matrix and four the other. The first weights are under way before x is there. */
template <int DTYPE, int GATED>
DEVICE void step_product(const rkv_product &p) {
  __shared__ float sums[WARPS_OF][16][9];
  const int row = blockIdx.x * 16 + LANE / 4, turns = GATED ? WARPS_OF / 2 : WARPS_OF, mine = WARP % turns * PART;
  const void *w = GATED && WARP >= turns ? p.gated : p.w;
  const int64_t stride = GATED && WARP >= turns ? p.gated_stride : p.stride;
  part now, next;
  load_part(now, w, stride, row, p.rows, mine, p.cols);
  begin();
  for (int first = 0; first < p.count; first += 8) {
    const int slot = nth_active(p, first + LANE / 4);
    if (__ballot_sync(0xffffffffu, slot >= 0) == 0) return;
    const float *x = p.x + (slot < 0 ? 0 : slot) * p.x_stride;
    float total[4] = {0, 0, 0, 0};
    if (first > 0) load_part(now, w, stride, row, p.rows, mine, p.cols);
    for (int k0 = mine; k0 < p.cols; k0 += 2 * turns * PART) {
      load_part(next, w, stride, row, p.rows, k0 + turns * PART, p.cols);
      add_part<DTYPE>(total, now, x, slot >= 0, k0, p.cols);
      load_part(now, w, stride, row, p.rows, k0 + 2 * turns * PART, p.cols);
      if (k0 + turns * PART < p.cols) add_part<DTYPE>(total, next, x, slot >= 0, k0 + turns * PART, p.cols);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; i++) sums[WARP][LANE / 4 + i / 2 * 8][LANE % 4 * 2 + i % 2] = total[i];
    __syncthreads();
    const int out = blockIdx.x * 16 + THREAD / 8, to = nth_active(p, first + THREAD % 8);
    if (THREAD < 128 && to >= 0 && out < p.rows) {
      float sum = 0, gated = 0;
      for (int i = 0; i < turns; i++) {
        sum += sums[i][THREAD / 8][THREAD % 8];
        if (GATED) gated += sums[turns + i][THREAD / 8][THREAD % 8];
      }
      float *y = p.y + to * p.y_stride + out;
      if (GATED) *y = silu(sum) * gated;
      else if (p.mode == RKV_ADD) *y += p.bias ? sum + p.bias[out] : sum;
      else *y = sum;
    }
  }
}

/* grid: 16 outputs each, products. */
#define STEP(name, dtype)                                                                                     \
  KERNEL __launch_bounds__(32 * WARPS_OF, 2) kernel_step_##name(const __grid_constant__ rkv_products all) {   \
    const rkv_product &p = all.of[blockIdx.y];                                                                \
    if (blockIdx.x * 16 < p.rows) step_product<dtype, 0>(p);                                                  \
    else begin();                                                                                             \
  }                                                                                                           \
  KERNEL __launch_bounds__(32 * WARPS_OF, 2) kernel_step_gated_##name(const __grid_constant__ rkv_products all) { step_product<dtype, 1>(all.of[0]); }
STEP(bf16, RKV_BF16)
STEP(f16, RKV_F16)
