/* step.cu: products of a step: weights of 16 bits with up to eight rows of x, on tensor cores, because that leaves the bandwidth to the
 * weights. x stays exact: a number of f32 is the sum of three halves (24 bits of bf16; of f16 what its range allows), and each is multiplied
 * by itself. A block makes 16 outputs for all slots at a time; its eight warps share the columns. Weights go straight to registers: a lane takes 16
 * bytes of a row, and which k a product calls its own is the same for weights and x. A slot is a column of its own: no neighbour changes it. */
#include "mma.cuh"

#define WARPS_OF 8
#define PART 128 /* columns that a warp takes at a time: four loads of 16 bytes for each of its rows */

/* Which of up to 64 rows take part. */
typedef struct { unsigned low, high; } rows_mask;
DEVICE rows_mask active_rows(const rkv_product &p) {
  return rows_mask{__ballot_sync(0xffffffffu, LANE < p.count && (!p.active || p.active[LANE])),
                   __ballot_sync(0xffffffffu, LANE + 32 < p.count && (!p.active || p.active[LANE + 32]))};
}
/* Row n of them, or -1. */
DEVICE int nth_row(rows_mask m, int n) {
  const int lows = __popc(m.low), all = lows + __popc(m.high);
  if (n >= all) return -1;
  if (m.high == 0 && (m.low & (m.low + 1)) == 0) return n; /* the first ones, all of them */
  return n < lows ? (int)__fns(m.low, 0, n + 1) : 32 + (int)__fns(m.high, 0, n + 1 - lows);
}

DEVICE uint4 weights_at(const void *w, int64_t stride, int row, int rows, int k) {
  return row < rows ? __ldcs((const uint4 *)((const char *)w + row * stride + k * 2)) : make_uint4(0, 0, 0, 0);
}

/* A warp's part is 16 rows by 128 columns. The 16 rows of a product on the tensor cores are eight rows of weights in two halves of a line: row
 * g is half g % 2 of row g / 2, so that a load of the warp is four whole lines of 128 bytes. Columns of x come in halves too, column n being
 * half n % 2 of slot n / 2, and of what the product makes only the sums count in which both are the same half. */
typedef struct { uint4 of[2][2][2]; } part; /* [line][product][its lower, upper eight] */
DEVICE void load_part(part &a, const void *w, int64_t stride, int row, int rows, int k0, int cols) {
#pragma unroll
  for (int line = 0; line < 2; line++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int k = k0 + line * 64 + LANE / 4 % 2 * 32 + LANE % 4 * 8;
      a.of[line][i / 2][i % 2] = weights_at(w, stride, row + 4 * i + LANE / 8, k < cols ? rows : 0, k);
    }
}

/* total[product][4] += a part of weights times four slots of x. Short chains on the tensor cores, which cut sums off; the long sum is rounded.
 * `ready`: this lane's slot as halves in shared memory, three planes of them; NULL: x is split here. */
template <int DTYPE>
DEVICE void add_part(float total[2][4], const part &a, const float *x, const char *ready, int is_row, int k0, int cols) {
#pragma unroll
  for (int line = 0; line < 2; line++) {
    const int k = k0 + line * 64 + LANE / 4 % 2 * 32 + LANE % 4 * 8;
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
#pragma unroll
    for (int m = 0; m < 2; m++) {
      const uint4 low = a.of[line][m][0], high = a.of[line][m][1];
      const unsigned one[4] = {low.x, high.x, low.y, high.y}, two[4] = {low.z, high.z, low.w, high.w};
      float c[4] = {0, 0, 0, 0};
#pragma unroll
      for (int i = 2; i >= 0; i--) { /* the small parts first */
        multiply<DTYPE>(c, one, b[0][i], b[1][i]);
        multiply<DTYPE>(c, two, b[2][i], b[3][i]);
      }
#pragma unroll
      for (int i = 0; i < 4; i++) total[m][i] += c[i];
    }
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

/* Two blocks for each multiprocessor go over the tiles; the next kernel's have their first weights under way while these end. With `GATED`
 * four warps take one matrix and four the other. `room`: rows of x that fit into shared memory as halves. */
template <int DTYPE, int GATED, int SETS>
DEVICE void step_products(const rkv_products &all, int room) {
  extern __shared__ __align__(16) char ready[]; /* [room][3][cols] */
  __shared__ float sums[2][WARPS_OF][16][9];
  const int turns = GATED ? WARPS_OF / 2 : WARPS_OF, mine = WARP % turns * PART, is_second = GATED && WARP >= turns, cols = all.of[0].cols, count = all.of[0].count;
  const auto load = [&](part &to, turn at) {
    if (at.product < 0) return;
    const rkv_product &p = all.of[at.product];
    load_part(to, is_second ? p.gated : p.w, is_second ? p.gated_stride : p.stride, at.tile * 16, p.rows, at.k + mine, cols);
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
  const rows_mask taking = active_rows(all.of[0]);
  for (int first = 0; first < count; first += 4 * SETS) {
    const rkv_product &p = all.of[0];
    const int to = nth_row(taking, first + THREAD % 8), last = least(4 * SETS, count - first);
    int slots[SETS];
    const float *x[SETS];
    const char *halves_of_x[SETS];
#pragma unroll
    for (int i = 0; i < SETS; i++) {
      slots[i] = nth_row(taking, first + 4 * i + LANE / 8);
      x[i] = p.x + (slots[i] < 0 ? 0 : slots[i]) * p.x_stride;
      halves_of_x[i] = last <= room ? ready + (int64_t)(4 * i + LANE / 8) * 6 * cols : NULL;
    }
    if (__ballot_sync(0xffffffffu, slots[0] >= 0) == 0) return;
    if (first > 0) {
      number = blockIdx.x;
      at = tile_of(all, number);
      load(now, at);
    }
    if (last <= room) {
      __syncthreads();
      for (int n = 0; n < last; n++) {
        const int row = nth_row(taking, first + n);
        if (row < 0) break;
#pragma unroll 4
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
    float total[SETS][2][4];
#pragma unroll
    for (int i = 0; i < 8 * SETS; i++) total[i / 8][i / 4 % 2][i % 4] = 0;
    int side = 0;
    while (at.product >= 0) {
      const turn then = next_of(at);
      load(next, then);
#pragma unroll
      for (int i = 0; i < SETS; i++) add_part<DTYPE>(total[i], now, x[i], halves_of_x[i], slots[i] >= 0, at.k + mine, cols);
      if (then.product != at.product || then.tile != at.tile) { /* the tile is done */
#pragma unroll
        for (int i = 0; i < 4 * SETS; i++) { /* two products of eight rows each; a lane and its neighbour of the other half share a row */
          float *c = total[i / 4][i / 2 % 2] + i % 2 * 2;
          const float half = LANE / 4 % 2 ? c[1] : c[0], sum = half + __shfl_xor_sync(0xffffffffu, half, 4);
          if (LANE / 4 % 2 == 0) sums[side][WARP][i / 2 % 2 * 8 + i % 2 * 4 + LANE / 8][i / 4 * 4 + LANE % 4] = sum;
          c[0] = c[1] = 0;
        }
        __syncthreads();
        const rkv_product &done = all.of[at.product];
        const int out = at.tile * 16 + THREAD / 8;
        if (THREAD < 128 && THREAD % 8 < 4 * SETS && to >= 0 && out < done.rows) {
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

/* grid: as many blocks as fit on the device, or fewer. SETS: four slots each. */
#define STEP(name, dtype, gated)                                                                                              \
  KERNEL __launch_bounds__(32 * WARPS_OF, 2) kernel_step_##name(const __grid_constant__ rkv_products all, int room) {         \
    if (all.of[0].count <= 4) step_products<dtype, gated, 1>(all, room);                                                      \
    else step_products<dtype, gated, 2>(all, room);                                                                           \
  }
STEP(bf16, RKV_BF16, 0)
STEP(gated_bf16, RKV_BF16, 1)
STEP(f16, RKV_F16, 0)
STEP(gated_f16, RKV_F16, 1)
