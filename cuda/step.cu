/* step.cu: products of a step: weights of 16 bits with up to eight rows of x, on tensor cores, because that leaves the bandwidth to the
 * weights. x stays exact: a number of f32 is the sum of three halves (24 bits of bf16; of f16 what its range allows), and each is multiplied
 * by itself. A block makes 16 outputs for all slots at a time; its eight warps share the columns. Weights go straight to registers: a lane takes 16
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

/* total += 128 columns of weights times x. Short chains on the tensor cores, which cut sums off; the long sum is rounded. `ready`: the row of x
 * as halves in shared memory, three planes of them; NULL: x is split here. */
template <int DTYPE>
DEVICE void add_part(float total[4], const part &a, const float *x, const char *ready, int is_row, int k0, int cols) {
#pragma unroll
  for (int s = 0; s < 4; s++) {
    const int k = k0 + s * 32 + LANE % 4 * 8;
    unsigned b[4][3];
    if (ready) {
#pragma unroll
      for (int i = 0; i < 3; i++) {
        uint4 v = make_uint4(0, 0, 0, 0);
        if (is_row && k < cols) v = *(const uint4 *)(ready + (int64_t)i * cols * 2 + k * 2);
        b[0][i] = v.x; b[1][i] = v.y; b[2][i] = v.z; b[3][i] = v.w;
      }
    } else {
      float4 u = make_float4(0, 0, 0, 0), v = u;
      if (is_row && k < cols) {
        u = *(const float4 *)(x + k);
        v = *(const float4 *)(x + k + 4);
      }
      split<DTYPE>(b[0], u.x, u.y);
      split<DTYPE>(b[1], u.z, u.w);
      split<DTYPE>(b[2], v.x, v.y);
      split<DTYPE>(b[3], v.z, v.w);
    }
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

/* What a block has to do: tiles of 16 outputs, of one product after another, each in turns of 128 columns a warp. */
typedef struct { int product, tile, k; } turn;

/* Tile `number` of all products, or a product of -1. */
DEVICE turn tile_of(const rkv_products &all, int number) {
  for (int i = 0; i < all.products; i++) {
    const int tiles = ceil_div(all.of[i].rows, 16);
    if (number < tiles) return turn{i, number, 0};
    number -= tiles;
  }
  return turn{-1, 0, 0};
}

/* One block for each multiprocessor: while it ends, that of the next kernel fits in beside it and has its first weights under way. With `GATED`
 * four warps take one matrix and four the other. `room`: rows of x that fit into shared memory as halves. */
template <int DTYPE, int GATED>
DEVICE void step_products(const rkv_products &all, int room) {
  extern __shared__ __align__(16) char ready[]; /* [room][3][cols] */
  __shared__ float sums[2][WARPS_OF][16][9];
  const int turns = GATED ? WARPS_OF / 2 : WARPS_OF, mine = WARP % turns * PART, is_second = GATED && WARP >= turns, cols = all.of[0].cols, count = all.of[0].count;
  const auto load = [&](part &to, turn at) {
    if (at.product < 0) return;
    const rkv_product &p = all.of[at.product];
    load_part(to, is_second ? p.gated : p.w, is_second ? p.gated_stride : p.stride, at.tile * 16 + LANE / 4, p.rows, at.k + mine, cols);
  };
  int number = blockIdx.x;
  const auto next_of = [&](turn at) { /* the next turn of this block */
    at.k += turns * PART;
    if (at.k < cols) return at;
    number += gridDim.x;
    return tile_of(all, number);
  };
  turn at = tile_of(all, number);
  part now, next;
  load(now, at);
  begin();
  for (int first = 0; first < count; first += 8) {
    const rkv_product &p = all.of[0];
    const int slot = nth_active(p, first + LANE / 4), to = nth_active(p, first + THREAD % 8), is_row = slot >= 0;
    if (__ballot_sync(0xffffffffu, is_row) == 0) return;
    if (first > 0) {
      number = blockIdx.x;
      at = tile_of(all, number);
      load(now, at);
    }
    const float *x = p.x + (is_row ? slot : 0) * p.x_stride;
    const char *halves_of_x = least(8, count - first) <= room ? ready + (int64_t)(LANE / 4) * 6 * cols : NULL;
    if (halves_of_x) {
      __syncthreads();
      for (int n = 0; n < least(8, count - first); n++) {
        const int row = nth_active(p, first + n);
        if (row < 0) break;
        for (int k = 4 * THREAD; k < cols; k += 4 * THREADS) {
          const float4 v = *(const float4 *)(p.x + row * p.x_stride + k);
          unsigned low[3], high[3];
          split<DTYPE>(low, v.x, v.y);
          split<DTYPE>(high, v.z, v.w);
#pragma unroll
          for (int i = 0; i < 3; i++) *(uint2 *)(ready + ((int64_t)n * 3 + i) * cols * 2 + k * 2) = make_uint2(low[i], high[i]);
        }
      }
      __syncthreads();
    }
    float total[4] = {0, 0, 0, 0};
    int side = 0;
    while (at.product >= 0) {
      const turn then = next_of(at);
      load(next, then);
      add_part<DTYPE>(total, now, x, halves_of_x, is_row, at.k + mine, cols);
      if (then.product != at.product || then.tile != at.tile) { /* the tile is done */
#pragma unroll
        for (int i = 0; i < 4; i++) sums[side][WARP][LANE / 4 + i / 2 * 8][LANE % 4 * 2 + i % 2] = total[i], total[i] = 0;
        __syncthreads();
        const rkv_product &done = all.of[at.product];
        const int out = at.tile * 16 + THREAD / 8;
        if (THREAD < 128 && to >= 0 && out < done.rows) {
          float sum = 0, gated = 0;
          for (int i = 0; i < turns; i++) {
            sum += sums[side][i][THREAD / 8][THREAD % 8];
            if (GATED) gated += sums[side][turns + i][THREAD / 8][THREAD % 8];
          }
          float *y = done.y + to * done.y_stride + out;
          if (GATED) *y = silu(sum) * gated;
          else if (done.mode == RKV_ADD) *y += done.bias ? sum + done.bias[out] : sum;
          else *y = sum;
        }
        side ^= 1; /* the next tile's sums go elsewhere: those who still add these need no second barrier */
      }
      now = next;
      at = then;
    }
  }
}

/* grid: as many blocks as multiprocessors, or fewer. */
#define STEP(name, dtype, gated)                                                                                              \
  KERNEL __launch_bounds__(32 * WARPS_OF, 2) kernel_step_##name(const __grid_constant__ rkv_products all, int room) {         \
    step_products<dtype, gated>(all, room);                                                                                   \
  }
STEP(bf16, RKV_BF16, 0)
STEP(gated_bf16, RKV_BF16, 1)
STEP(f16, RKV_F16, 0)
STEP(gated_f16, RKV_F16, 1)
