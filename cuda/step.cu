/* step.cu: products of a step: weights of 16 bits with up to 16 rows of x a pass, on tensor cores, because that leaves the bandwidth to the
 * weights. x stays exact: a number of f32 is the sum of three halves (24 bits of bf16; of f16 what its range allows), and each is multiplied
 * by itself. A slot is a column of its own: no neighbour changes it.
 *
 * A block a multiprocessor makes its share of the outputs, in tiles of 16 rows of weights. Its warps share the columns, a line of 128 bytes of
 * each row at a time; a warp keeps its part of x in registers while up to TILES tiles pass by, which come through a ring in shared memory that
 * it fills for itself, ahead of its need and before the kernel in front has ended. Nobody waits for anybody until the warps' sums are joined. */
#include "mma.cuh"

#define WARPS_OF RKV_STEP_WARPS
#define STAGES RKV_STEP_STAGES
#define SLICE 64 /* columns that a warp takes at a time */
#define ROUND (SLICE * WARPS_OF)
#define STAGE_BYTES (16 * SLICE * 2)

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

/* Which product tile `number` of all is of; number becomes its place there. */
DEVICE int product_of(const rkv_products &all, int &number) {
  int i = 0;
  for (; i < all.products - 1; i++) {
    const int tiles = (all.of[i].rows + 15) / 16;
    if (number < tiles) break;
    number -= tiles;
  }
  return i;
}

/* What is copied next: tile `tile` of [first, first + count), columns [k, k + SLICE). */
typedef struct { int first, count, tile, k; } place;

/* Four chunks of 16 bytes a lane: whole lines. Odd rows have the halves of their line exchanged, so that loads of two rows meet in no bank. A
 * gated tile has eight rows of gate above the same eight of up. */
template <int GATED>
DEVICE void copy_stage(const rkv_products &all, const place &at, unsigned stage, int cols) {
  const int r = LANE / 8, chunk = LANE % 8, k = at.k + chunk * 8;
  int tile = at.first + at.tile;
  const rkv_product &p = all.of[GATED ? 0 : product_of(all, tile)];
  const unsigned to = stage + r * 128 + ((chunk ^ (r & 1) << 2) << 4);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int row = GATED ? tile * 8 + i % 2 * 4 + r : tile * 16 + i * 4 + r, is_there = row < p.rows && k < cols, is_up = GATED && i >= 2;
    const char *from = (const char *)(is_up ? p.gated : p.w) + (is_there ? row * (is_up ? p.gated_stride : p.stride) + k * 2 : 0);
    copy16(to + i * 512, from, is_there);
  }
}

DEVICE uint4 shared16(unsigned address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
  return v;
}

/* A lane's part of x: of one slot eight columns in each 32. */
typedef struct { float4 of[4]; } raw;
DEVICE int column_of(int k, int i) { return k + i / 2 * 32 + LANE % 4 * 8 + i % 2 * 4; }
DEVICE void load_raw(raw &to, const float *x, int is_row, int k, int cols) {
#pragma unroll
  for (int i = 0; i < 4; i++) to.of[i] = is_row && column_of(k, i) < cols ? *(const float4 *)(x + column_of(k, i)) : make_float4(0, 0, 0, 0);
}

template <int DTYPE, int GATED, int SETS, int TILES>
DEVICE void step_products(const rkv_products &all) {
  extern __shared__ __align__(1024) unsigned char shared[]; /* the warps' rings, then sums[TILES][warp][16][8 * SETS] */
  const int cols = all.of[0].cols, count = all.of[0].count, mine = WARP * SLICE, g = LANE / 4, t = LANE % 4;
  const unsigned ring = shared_address(shared) + WARP * STAGES * STAGE_BYTES, ring_end = ring + STAGES * STAGE_BYTES;
  float *sums = (float *)(shared + WARPS_OF * STAGES * STAGE_BYTES);
  int tiles = 0;
  for (int i = 0; i < all.products; i++) tiles += GATED ? (all.of[i].rows + 7) / 8 : (all.of[i].rows + 15) / 16;
  const int share = tiles / gridDim.x, more = tiles % gridDim.x, number = blockIdx.x; /* the first blocks have one more */
  const int first_tile = number * share + least(number, more), last_tile = first_tile + share + (number < more);
  place ahead = {0, 0, 0, 0};
  const auto copy_next = [&](unsigned stage) {
    if (ahead.count > 0) {
      copy_stage<GATED>(all, ahead, stage, cols);
      if (++ahead.tile == ahead.count) {
        ahead.tile = 0;
        ahead.k += ROUND;
        if (ahead.k >= cols) {
          ahead.k = mine;
          ahead.first += ahead.count;
          ahead.count = least(TILES, last_tile - ahead.first);
        }
      }
    }
    copies_end(); /* a group in any case: they are counted */
  };
  const auto start = [&] {
    ahead = place{first_tile, mine < cols ? least(TILES, last_tile - first_tile) : 0, 0, mine};
#pragma unroll 1
    for (int i = 0; i < STAGES; i++) copy_next(ring + i * STAGE_BYTES);
  };
  start();
  begin();
  const rows_mask taking = active_rows(all.of[0]);
  for (int first = 0; first < count; first += 8 * SETS) {
    if (nth_row(taking, first) < 0) break;
    if (first > 0) start();
    const float *x[SETS];
    int is_row[SETS];
#pragma unroll
    for (int s = 0; s < SETS; s++) {
      const int slot = nth_row(taking, first + 8 * s + g);
      is_row[s] = slot >= 0;
      x[s] = all.of[0].x + (slot < 0 ? 0 : slot) * all.of[0].x_stride;
    }
    unsigned stage = ring;
    for (int base = first_tile; base < last_tile; base += TILES) {
      const int here = least(TILES, last_tile - base);
      float total[TILES][SETS][4];
#pragma unroll
      for (int i = 0; i < 4 * TILES * SETS; i++) total[i / (4 * SETS)][i / 4 % SETS][i % 4] = 0;
      raw next[SETS];
      if (SETS == 1) load_raw(next[0], x[0], is_row[0], mine, cols);
      for (int k = mine; k < cols; k += ROUND) {
        unsigned b[SETS][8][3];
#pragma unroll
        for (int s = 0; s < SETS; s++) {
          if (SETS > 1) load_raw(next[s], x[s], is_row[s], k, cols);
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const float4 v = next[s].of[i];
            split<DTYPE>(b[s][2 * i], v.x, v.y);
            split<DTYPE>(b[s][2 * i + 1], v.z, v.w);
          }
        }
        if (SETS == 1) load_raw(next[0], x[0], is_row[0], k + ROUND, cols);
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
          if (tile >= here) break;
          copies_wait<STAGES - 1>();
          __syncwarp();
          uint4 low[2], high[2];
#pragma unroll
          for (int j = 0; j < 2; j++) {
            const unsigned from = stage + g * 128 + ((4 * j + t ^ (g & 1) << 2) << 4);
            low[j] = shared16(from);
            high[j] = shared16(from + 8 * 128);
          }
          __syncwarp();
          copy_next(stage);
          stage = stage + STAGE_BYTES == ring_end ? ring : stage + STAGE_BYTES;
          /* Short chains on the tensor cores, which cut sums off; the long sum is rounded. */
#pragma unroll
          for (int s = 0; s < SETS; s++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
              const unsigned one[4] = {low[j].x, high[j].x, low[j].y, high[j].y}, two[4] = {low[j].z, high[j].z, low[j].w, high[j].w};
              float c[4] = {0, 0, 0, 0};
#pragma unroll
              for (int i = 2; i >= 0; i--) { /* the small parts first */
                multiply<DTYPE>(c, one, b[s][4 * j][i], b[s][4 * j + 1][i]);
                multiply<DTYPE>(c, two, b[s][4 * j + 2][i], b[s][4 * j + 3][i]);
              }
#pragma unroll
              for (int i = 0; i < 4; i++) total[tile][s][i] += c[i];
            }
        }
      }
      __syncthreads(); /* the sums before these were used */
#pragma unroll
      for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int s = 0; s < SETS; s++) {
          float *to = sums + ((tile * WARPS_OF + WARP) * 16 + g) * 8 * SETS + 8 * s + 2 * t;
          *(float2 *)to = make_float2(total[tile][s][0], total[tile][s][1]);
          *(float2 *)(to + 64 * SETS) = make_float2(total[tile][s][2], total[tile][s][3]);
        }
      __syncthreads();
      const int outputs = GATED ? 8 : 16;
      for (int id = THREAD; id < here * outputs * 8 * SETS; id += THREADS) {
        const int r = id % outputs, n = id / outputs % (8 * SETS), tile = id / (outputs * 8 * SETS), slot = nth_row(taking, first + n);
        int at = base + tile;
        const rkv_product &p = all.of[GATED ? 0 : product_of(all, at)];
        const int out = at * outputs + r;
        if (slot < 0 || out >= p.rows) continue;
        float sum = 0, gated = 0;
#pragma unroll
        for (int w = 0; w < WARPS_OF; w++) {
          const float *from = sums + ((tile * WARPS_OF + w) * 16 + r) * 8 * SETS + n;
          sum += from[0];
          if (GATED) gated += from[64 * SETS];
        }
        float *y = p.y + slot * p.y_stride + out;
        if (GATED) *y = silu(sum) * gated;
        else if (p.mode == RKV_ADD) *y += p.bias ? sum + p.bias[out] : sum;
        else *y = sum;
      }
    }
  }
}

/* grid: a block a multiprocessor, or fewer. `step` takes up to 8 slots a pass, `wide` 16. */
#define STEP(name, dtype, gated)                                                                           \
  KERNEL __launch_bounds__(32 * WARPS_OF, 1) kernel_step_##name(const __grid_constant__ rkv_products all) { \
    step_products<dtype, gated, 1, RKV_STEP_TILES>(all);                                                    \
  }                                                                                                         \
  KERNEL __launch_bounds__(32 * WARPS_OF, 1) kernel_wide_##name(const __grid_constant__ rkv_products all) { \
    step_products<dtype, gated, 2, RKV_WIDE_TILES>(all);                                                    \
  }
STEP(bf16, RKV_BF16, 0)
STEP(gated_bf16, RKV_BF16, 1)
STEP(f16, RKV_F16, 0)
STEP(gated_f16, RKV_F16, 1)
