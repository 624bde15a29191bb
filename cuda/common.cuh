/* common.cuh: what the kernels share. Sums run in an order that shapes alone decide: lanes take elements in turn, a butterfly joins a warp,
 * warps are joined in order. No atomics on floats. */
#ifndef RKV_COMMON_CUH
#define RKV_COMMON_CUH
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include "../ffi/core/ops.h"
#include "kernels.h"

#define KERNEL extern "C" __global__ void
#define DEVICE static __device__ __forceinline__
#define INFINITE __int_as_float(0x7f800000)
#define NOT_A_NUMBER __int_as_float(0x7fffffff)
#define WARPS ((int)(blockDim.x / 32))
#define WARP ((int)(threadIdx.x / 32))
#define LANE ((int)(threadIdx.x % 32))
#define THREADS ((int)blockDim.x)
#define THREAD ((int)threadIdx.x)

/* A kernel may be started while the one before it ends (Hopper and later). Every kernel calls this before it reads what others wrote: from here
 * on all that came before is done. What follows may be started now: it will wait in its turn. */
DEVICE void begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

DEVICE int least(int a, int b) { return a < b ? a : b; }
DEVICE int most(int a, int b) { return a > b ? a : b; }
DEVICE int ceil_div(int64_t a, int b) { return (int)((a + b - 1) / b); }
/* The larger; a NaN is passed over. */
DEVICE float larger(float a, float b) { return a > b ? a : b; }

DEVICE float warp_sum(float x) {
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
  return x;
}
DEVICE float warp_max(float x) {
  for (int i = 16; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
  return x;
}
DEVICE int warp_sum_int(int x) {
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
  return x;
}

/* Over a block; every thread gets the result. shared[32]. */
DEVICE float block_sum(float x, float *shared) {
  x = warp_sum(x);
  __syncthreads();
  if (LANE == 0) shared[WARP] = x;
  __syncthreads();
  float total = 0;
  for (int w = 0; w < WARPS; w++) total += shared[w];
  return total;
}
DEVICE float block_max(float x, float *shared) {
  x = warp_max(x);
  __syncthreads();
  if (LANE == 0) shared[WARP] = x;
  __syncthreads();
  float total = -INFINITE;
  for (int w = 0; w < WARPS; w++) total = fmaxf(total, shared[w]);
  return total;
}
DEVICE int block_sum_int(int x, int *shared) {
  x = warp_sum_int(x);
  __syncthreads();
  if (LANE == 0) shared[WARP] = x;
  __syncthreads();
  int total = 0;
  for (int w = 0; w < WARPS; w++) total += shared[w];
  return total;
}
/* Sum over the threads before this one; *total gets the sum over all. shared[33]. */
DEVICE int block_scan(int x, int *shared, int *total) {
  int sum = x;
  for (int i = 1; i < 32; i *= 2) {
    const int before = __shfl_up_sync(0xffffffffu, sum, i);
    if (LANE >= i) sum += before;
  }
  __syncthreads();
  if (LANE == 31) shared[WARP] = sum;
  __syncthreads();
  int base = 0, all = 0;
#pragma unroll 1
  for (int w = 0; w < WARPS; w++) {
    if (w == WARP) base = all;
    all += shared[w];
  }
  *total = all;
  return base + sum - x;
}

/* ---- rows of the KV cache: f32, f16, bf16, or q8 (signed bytes, then one f32 scale) ---- */

DEVICE int64_t row_bytes(int dtype, int width) {
  return dtype == RKV_F16 || dtype == RKV_BF16 ? (int64_t)width * 2 : dtype == RKV_Q8 ? (int64_t)width + 4 : (int64_t)width * 4;
}
/* A q8 row's scale stands behind its bytes, at any address. */
DEVICE float q8_scale(const void *row, int width) {
  const unsigned char *b = (const unsigned char *)row + width;
  return __uint_as_float((unsigned)b[0] | (unsigned)b[1] << 8 | (unsigned)b[2] << 16 | (unsigned)b[3] << 24);
}
/* Element d of a row, without a q8 row's scale. */
DEVICE float raw_at(int dtype, const void *row, int d) {
  switch (dtype) {
    case RKV_F16: return __half2float(((const __half *)row)[d]);
    case RKV_BF16: return __bfloat162float(((const __nv_bfloat16 *)row)[d]);
    case RKV_Q8: return (float)((const signed char *)row)[d];
    default: return ((const float *)row)[d];
  }
}
DEVICE float row_scale(int dtype, const void *row, int width) { return dtype == RKV_Q8 ? q8_scale(row, width) : 1.0f; }
DEVICE float at_row(int dtype, const void *row, int d, int width) {
  const float x = raw_at(dtype, row, d);
  return dtype == RKV_Q8 ? x * q8_scale(row, width) : x;
}

/* Two neighbours of 16 bits, the lower first. */
template <int DTYPE>
DEVICE float2 halves_of(unsigned word) {
  if (DTYPE == RKV_BF16) return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
  return make_float2(__half2float(__ushort_as_half((unsigned short)word)), __half2float(__ushort_as_half((unsigned short)(word >> 16))));
}

/* Whether eight elements of a row may be loaded at once. */
DEVICE int loads_eight(int dtype, int width) { return dtype == RKV_F32 || dtype == RKV_Q8 ? width % 4 == 0 : width % 8 == 0; }
/* Elements [d, d + 8) without a q8 row's scale; zeros past the width. */
DEVICE void load8(float *to, int dtype, const void *row, int d, int width, int eight) {
  if (!eight || d + 8 > width) {
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] = d + i < width ? raw_at(dtype, row, d + i) : 0;
  } else if (dtype == RKV_F32) {
    const float4 a = *(const float4 *)((const float *)row + d), b = *(const float4 *)((const float *)row + d + 4);
    to[0] = a.x; to[1] = a.y; to[2] = a.z; to[3] = a.w; to[4] = b.x; to[5] = b.y; to[6] = b.z; to[7] = b.w;
  } else if (dtype == RKV_Q8) {
#pragma unroll
    for (int w = 0; w < 2; w++) {
      const char4 a = *(const char4 *)((const signed char *)row + d + 4 * w);
      to[4 * w] = a.x; to[4 * w + 1] = a.y; to[4 * w + 2] = a.z; to[4 * w + 3] = a.w;
    }
  } else {
    const uint4 a = *(const uint4 *)((const unsigned short *)row + d);
    const unsigned words[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
    for (int w = 0; w < 4; w++) {
      const float2 both = dtype == RKV_BF16 ? halves_of<RKV_BF16>(words[w]) : halves_of<RKV_F16>(words[w]);
      to[2 * w] = both.x, to[2 * w + 1] = both.y;
    }
  }
}

/* Elements [d, d + 4) without a q8 row's scale; zeros past the width. WHOLE: the width is a multiple of four. */
template <int DTYPE, int WHOLE>
DEVICE void load4(float *to, const void *row, int d, int width) {
  if (!WHOLE) {
#pragma unroll
    for (int i = 0; i < 4; i++) to[i] = d + i < width ? raw_at(DTYPE, row, d + i) : 0;
  } else if (DTYPE == RKV_F32) {
    const float4 a = *(const float4 *)((const float *)row + d);
    to[0] = a.x; to[1] = a.y; to[2] = a.z; to[3] = a.w;
  } else if (DTYPE == RKV_Q8) {
    const char4 a = *(const char4 *)((const signed char *)row + d);
    to[0] = a.x; to[1] = a.y; to[2] = a.z; to[3] = a.w;
  } else {
    const uint2 a = *(const uint2 *)((const unsigned short *)row + d);
    const float2 low = halves_of<DTYPE>(a.x), high = halves_of<DTYPE>(a.y);
    to[0] = low.x; to[1] = low.y; to[2] = high.x; to[3] = high.y;
  }
}

/* One element to a row of 16 or 32 bits. */
DEVICE void put_at(int dtype, void *row, int d, float x) {
  if (dtype == RKV_F16) ((__half *)row)[d] = __float2half_rn(x);
  else if (dtype == RKV_BF16) ((__nv_bfloat16 *)row)[d] = __float2bfloat16_rn(x);
  else ((float *)row)[d] = x;
}

/* A warp writes a row. q8: scale = largest magnitude / 127; a row with a NaN or an infinity gets a NaN scale: it may not pass for a number. */
DEVICE void put_row(int dtype, void *row, const float *x /*[width]*/, int width) {
  if (dtype != RKV_Q8) {
    for (int d = LANE; d < width; d += 32) put_at(dtype, row, d, x[d]);
    return;
  }
  float largest = 0, zero = 0;
  for (int d = LANE; d < width; d += 32) {
    largest = larger(fabsf(x[d]), largest);
    zero += fabsf(x[d]) * 0.0f;
  }
  largest = warp_max(largest);
  zero = warp_sum(zero);
  const float scale = largest / 127 + zero, inverse = largest > 0 && zero == 0 ? 127 / largest : 0;
  for (int d = LANE; d < width; d += 32) {
    const float v = zero == 0 ? x[d] * inverse : 0;
    ((signed char *)row)[d] = (signed char)rintf(v > 127 ? 127 : v < -127 ? -127 : v == v ? v : 0);
  }
  if (LANE < 4) ((unsigned char *)row)[width + LANE] = (unsigned char)(__float_as_uint(scale) >> 8 * LANE);
}

/* cap * tanh(x / cap). Source: Gemma 2 (arXiv 2408.00118). */
DEVICE float soft_cap(float x, float cap) { return cap * tanhf(x / cap); }
DEVICE float cap_logit(float x, const rkv_layer_data &layer) {
  x *= layer.scale;
  return layer.soft_cap > 0 ? soft_cap(x, layer.soft_cap) : x;
}

/* A warp's dot product of a query with a row; every lane gets it. */
DEVICE float warp_dot(const float *q, int dtype, const void *row, int dim) {
  float sum = 0;
  switch (dtype) { /* the switch outside the loop */
    case RKV_F16: for (int d = LANE; d < dim; d += 32) sum = fmaf(q[d], raw_at(RKV_F16, row, d), sum); break;
    case RKV_BF16: for (int d = LANE; d < dim; d += 32) sum = fmaf(q[d], raw_at(RKV_BF16, row, d), sum); break;
    case RKV_Q8: for (int d = LANE; d < dim; d += 32) sum = fmaf(q[d], raw_at(RKV_Q8, row, d), sum); break;
    default: for (int d = LANE; d < dim; d += 32) sum = fmaf(q[d], raw_at(RKV_F32, row, d), sum);
  }
  sum = warp_sum(sum);
  return dtype == RKV_Q8 ? sum * q8_scale(row, dim) : sum;
}

DEVICE float silu(float g) { return g / (1 + expf(-g)); }

/* A number that is smaller for a better score; -inf and NaN have none. */
#define NO_RANK 0xffffffffu
DEVICE unsigned rank_of(float score) {
  if (!(score > -INFINITE)) return NO_RANK;
  const unsigned bits = __float_as_uint(score + 0.0f); /* -0 is 0 */
  return bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
}

#endif
