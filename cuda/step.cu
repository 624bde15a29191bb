/* step.cu: products of a step: weights of 16 bits with up to 8 or 32 rows of x a pass, on tensor cores, because that leaves the bandwidth to the
 * weights. x stays exact: a number of f32 is the sum of three halves (24 bits of bf16; of f16 what its range allows), and each is multiplied
 * by itself. A slot is a column of its own: no neighbour changes it.
 *
 * A block a multiprocessor makes its share of the outputs, in tiles of 16 rows of weights. Its warps share the columns, a line of 128 bytes of
 * each row at a time; a warp keeps its part of x in registers while up to TILES tiles pass by, which come through a ring in shared memory that
 * it fills for itself, ahead of its need and before the kernel in front has ended. x comes through shared memory as well, by whole lines: straight
 * into registers each lane would ask for eight bytes here and there. Nobody waits for anybody until the warps' sums are joined. */
#include "mma.cuh"

#define WARPS_OF RKV_STEP_WARPS
#define SLICE 64 /* columns that a warp takes at a time */
#define ROUND (SLICE * WARPS_OF)
#define STAGE_BYTES (16 * SLICE * 2)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define TILES_OF RKV_STEP_TILES_BEFORE
#define DEPTH_OF RKV_STEP_DEPTH_BEFORE
#else
#define TILES_OF RKV_STEP_TILES
#define DEPTH_OF RKV_STEP_DEPTH
#endif

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

/* What is copied next: tile `tile` of [first, first + count), columns [k, k + SLICE) of the warp's part `part`. */
typedef struct { int first, count, tile, part, k; } place;

/* Where a tile lies: products one after another; and whether all tiles are whole. */
typedef struct { int second, third, is_whole; } layout;
template <int GATED>
DEVICE layout layout_of(const rkv_products &all) {
  const int n = all.products, height = GATED ? 8 : 16;
  layout at = {n > 1 ? (all.of[0].rows + 15) / 16 : 0x7fffffff, 0x7fffffff, all.of[0].cols % SLICE == 0 && all.of[0].rows % height == 0};
  if (n > 1) at.is_whole &= all.of[1].rows % height == 0;
  if (n > 2) {
    at.third = at.second + (all.of[1].rows + 15) / 16;
    at.is_whole &= all.of[2].rows % height == 0;
  }
  return at;
}

/* Four chunks of 16 bytes a lane: whole lines. The chunks of a line are exchanged by its number, so that loads of eight lines meet in no bank. A
 * gated tile has eight rows of gate above the same eight of up. */
template <int GATED>
DEVICE void copy_stage(const rkv_products &all, const layout &lies, const place &at, unsigned stage) {
  const rkv_product &p = all.of[0];
  const int r = LANE / 8, chunk = LANE % 8;
  const unsigned even = stage + r * 128 + ((chunk ^ r) << 4), odd = stage + r * 128 + ((chunk ^ r ^ 4) << 4);
  int tile = at.first + at.tile, rows = p.rows;
  const char *w = (const char *)p.w;
  if (!GATED) {
    if (tile >= lies.third) w = (const char *)all.of[2].w, rows = all.of[2].rows, tile -= lies.third;
    else if (tile >= lies.second) w = (const char *)all.of[1].w, rows = all.of[1].rows, tile -= lies.second;
  }
  const int64_t to = tile * (GATED ? 8 : 16) * p.stride + (r * p.stride + chunk * 16) + at.k * 2;
  const char *from[4] = {w + to, w + to + 4 * p.stride, GATED ? (const char *)p.gated + to : w + to + 8 * p.stride,
                         GATED ? (const char *)p.gated + to + 4 * p.stride : w + to + 12 * p.stride};
  if (lies.is_whole) {
#pragma unroll
    for (int i = 0; i < 4; i++) copy_sixteen((i % 2 ? odd : even) + i * 512, from[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int row = GATED ? tile * 8 + i % 2 * 4 + r : tile * 16 + i * 4 + r, is_there = row < rows && at.k + chunk * 8 < p.cols;
    copy16((i % 2 ? odd : even) + i * 512, is_there ? from[i] : w, is_there);
  }
}

DEVICE float2 shared8(unsigned address) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
  return v;
}

/* x of the slots for a warp's columns: a line of 256 bytes each, eight columns to a chunk of 32 bytes, of which a slot's are exchanged by its
 * number: loads of four slots meet in no bank. */
DEVICE unsigned x_chunk(unsigned from, int slot, int chunk) { return from + slot * 256 + ((chunk ^ (slot & 3)) << 5); }

/* SETS: eight slots each. PARTS: shares of the columns that a warp has, one after another, so that fewer warps have more registers; every sum
 * is made in the same order. STAGES of a warp's ring; DEPTH: slices of x under way or in use. */
template <int DTYPE, int GATED, int SETS, int TILES, int PARTS, int STAGES, int DEPTH>
DEVICE void step_products(const rkv_products &all) {
  constexpr int HERE = WARPS_OF / PARTS, OUTPUTS = GATED ? 8 : 16, TOGETHER = SETS > 1 ? 2 : 1, SLOTS = 8 * SETS, X = SLOTS * SLICE * 4;
  constexpr int MOST = (TILES * OUTPUTS * SLOTS + 32 * HERE - 1) / (32 * HERE); /* outputs of a thread */
  extern __shared__ __align__(1024) unsigned char shared[]; /* the warps' rings, their slices of x, then sums[TILES][warp][16][SLOTS] */
  const int cols = all.of[0].cols, g = LANE / 4, t = LANE % 4;
  const unsigned ring = shared_address(shared) + WARP * STAGES * STAGE_BYTES, ring_end = ring + STAGES * STAGE_BYTES;
  const unsigned slices = shared_address(shared) + HERE * STAGES * STAGE_BYTES + WARP * DEPTH * X;
  float *sums = (float *)(shared + HERE * (STAGES * STAGE_BYTES + DEPTH * X));
  int tiles = 0;
  for (int i = 0; i < all.products; i++) tiles += (all.of[i].rows + OUTPUTS - 1) / OUTPUTS;
  const int share = tiles / gridDim.x, more = tiles % gridDim.x, number = blockIdx.x; /* the first blocks have one more */
  const int first_tile = number * share + least(number, more), last_tile = first_tile + share + (number < more);
  const layout lies = layout_of<GATED>(all);
  const auto column = [&](int part) { return (WARP + part * HERE) * SLICE; };
  const auto pass = [&](place &at) {
    if (++at.tile < at.count) return;
    at.tile = 0;
    at.k += ROUND;
    while (at.k >= cols && at.count > 0) {
      if (++at.part == PARTS) {
        at.part = 0;
        at.first += at.count;
        at.count = least(TILES, last_tile - at.first);
      }
      at.k = column(at.part);
    }
  };
  place ahead = {0, 0, 0, 0, 0};
  const auto copy_next = [&](unsigned stage) {
    if (ahead.count > 0) {
      copy_stage<GATED>(all, lies, ahead, stage);
      pass(ahead);
    }
    copies_end(); /* a group in any case: they are counted */
  };
  const auto start = [&] {
    ahead = place{first_tile, column(0) < cols ? least(TILES, last_tile - first_tile) : 0, 0, 0, column(0)};
#pragma unroll 1
    for (int i = 0; i < STAGES - 1; i++) copy_next(ring + i * STAGE_BYTES);
  };
  start();
  begin();
  const rows_mask taking = active_rows(all.of[0]);
  const int slots = __popc(taking.low) + __popc(taking.high);
  for (int first = 0; first < slots; first += SLOTS) {
    if (first > 0) start();
    const int sets = SETS == 1 ? 1 : least(SETS, (slots - first + 8 * TOGETHER - 1) / (8 * TOGETHER) * TOGETHER);
    const int slot = LANE < SLOTS ? nth_row(taking, first + LANE) : -1;
    int asked_part = 0, asked_k = column(0), left = 0, at_slice = 0, since[DEPTH]; /* copies since those of a slice */
    for (int part = 0; part < PARTS; part++) left += most(0, (cols - column(part) + ROUND - 1) / ROUND) * ((last_tile - first_tile + TILES - 1) / TILES);
    const auto ask_x = [&](unsigned to) {
      const int k = asked_k + LANE % 16 * 4;
      if (left == 0) return;
      left--;
#pragma unroll(SETS == 1 ? 4 : 1)
      for (int n = LANE / 16; n < 8 * sets; n += 2) {
        const int from = __shfl_sync(0xffffffffu, slot, n), is_there = from >= 0 && k < cols;
        copy16(x_chunk(to, n, LANE % 16 / 2) + LANE % 2 * 16, is_there ? all.of[0].x + from * all.of[0].x_stride + k : all.of[0].x, is_there);
      }
      asked_k += ROUND;
      if (asked_k < cols) return;
      asked_part = asked_part + 1 < PARTS && column(asked_part + 1) < cols ? asked_part + 1 : 0;
      asked_k = column(asked_part);
    };
    ask_x(slices); /* ahead of the ring's last stage, so that it waits for less */
    copies_end();
    since[0] = 1;
    if (DEPTH > 1) ask_x(slices + X), since[DEPTH - 1] = 0;
    copy_next(ring + (STAGES - 1) * STAGE_BYTES);
    unsigned stage = ring;
    for (int base = first_tile; base < last_tile; base += TILES) {
      const int here = least(TILES, last_tile - base);
      float carry[MOST][1 + GATED];
#pragma unroll
      for (int i = 0; i < MOST * (1 + GATED); i++) carry[i / (1 + GATED)][i % (1 + GATED)] = 0;
#pragma unroll 1
      for (int part = 0; part < PARTS; part++) {
        const int mine = column(part);
        float total[TILES][SETS][4];
#pragma unroll
        for (int i = 0; i < 4 * TILES * SETS; i++) total[i / (4 * SETS)][i / 4 % SETS][i % 4] = 0;
        for (int k = mine; k < cols; k += ROUND) {
          unsigned b[SETS][8][3];
          if (since[0] == 0) copies_wait<0>();
          else if (since[0] == 1) copies_wait<1>();
          else if (since[0] == 2) copies_wait<2>();
          else copies_wait<3>();
          __syncwarp();
          const unsigned slice = slices + at_slice * X;
#pragma unroll
          for (int s = 0; s < SETS; s++) {
            if (s >= sets) break;
#pragma unroll
            for (int i = 0; i < 8; i++) {
              const float2 v = shared8(x_chunk(slice, 8 * s + g, i) + t * 8);
              split<DTYPE>(b[s][i], v.x, v.y);
            }
          }
          __syncwarp();
          ask_x(slice); /* goes with the next copy's group */
          at_slice = (at_slice + 1) % DEPTH;
#pragma unroll
          for (int i = 0; i < DEPTH; i++) since[i] = (i + 1 < DEPTH ? since[i + 1] + 1 : 0) + here - 1;
#pragma unroll
          for (int tile = 0; tile < TILES; tile++) {
            if (tile >= here) break;
            copies_wait<STAGES - 1>();
            __syncwarp();
            unsigned w[4][4]; /* of 16 columns each */
#pragma unroll
            for (int i = 0; i < 4; i++) load_four(w[i], chunk_at(stage, LANE % 16, 2 * i + LANE / 16, 128));
            __syncwarp();
            copy_next(stage);
            stage = stage + STAGE_BYTES == ring_end ? ring : stage + STAGE_BYTES;
            /* Short chains on the tensor cores, which cut sums off; the long sum is rounded. Some chains at a time, for each waits for itself. */
#pragma unroll
            for (int s = 0; s < SETS; s += TOGETHER) {
              if (s >= sets) break;
              float c[TOGETHER][2][4];
#pragma unroll
              for (int i = 2; i >= 0; i--) /* the small parts first */
#pragma unroll
                for (int half = 0; half < 2; half++)
#pragma unroll
                  for (int chain = 0; chain < 2 * TOGETHER; chain++) {
                    const int of = s + chain / 2, j = chain % 2, at = 2 * j + half;
                    if (i == 2 && half == 0) multiply_new<DTYPE>(c[chain / 2][j], w[at], b[of][2 * at][i], b[of][2 * at + 1][i]);
                    else multiply<DTYPE>(c[chain / 2][j], w[at], b[of][2 * at][i], b[of][2 * at + 1][i]);
                  }
#pragma unroll
              for (int chain = 0; chain < 2 * TOGETHER; chain++)
#pragma unroll
                for (int i = 0; i < 4; i++) total[tile][s + chain / 2][i] += c[chain / 2][chain % 2][i];
            }
          }
        }
        __syncthreads(); /* the sums before these were used */
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
          for (int s = 0; s < SETS; s++) {
            float *to = sums + ((tile * HERE + WARP) * 16 + g) * SLOTS + 8 * s + 2 * t;
            *(float2 *)to = make_float2(total[tile][s][0], total[tile][s][1]);
            *(float2 *)(to + 8 * SLOTS) = make_float2(total[tile][s][2], total[tile][s][3]);
          }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < MOST; i++) {
          const int id = THREAD + i * 32 * HERE, r = id % OUTPUTS, n = id / OUTPUTS % SLOTS, tile = id / (OUTPUTS * SLOTS);
          if (tile >= here) break;
#pragma unroll
          for (int w = 0; w < HERE; w++) {
            const float *from = sums + ((tile * HERE + w) * 16 + r) * SLOTS + n;
            carry[i][0] += from[0];
            if (GATED) carry[i][GATED] += from[8 * SLOTS];
          }
          const int to = nth_row(taking, first + n);
          int at = base + tile;
          const rkv_product &p = all.of[GATED ? 0 : product_of(all, at)];
          const int out = at * OUTPUTS + r;
          if (part < PARTS - 1 || to < 0 || out >= p.rows) continue;
          float *y = p.y + to * p.y_stride + out;
          if (GATED) *y = silu(carry[i][0]) * carry[i][GATED];
          else if (p.mode == RKV_ADD) *y += p.bias ? carry[i][0] + p.bias[out] : carry[i][0];
          else *y = carry[i][0];
        }
      }
    }
  }
}

/* grid: a block a multiprocessor, or fewer. `step` takes up to 8 slots a pass, `wide` 32, in blocks of half as many warps. */
#define STEP(name, dtype, gated)                                                                            \
  KERNEL __launch_bounds__(32 * WARPS_OF, 1) kernel_step_##name(const __grid_constant__ rkv_products all) { \
    step_products<dtype, gated, 1, TILES_OF, 1, RKV_STEP_STAGES, DEPTH_OF>(all);                            \
  }                                                                                                         \
  KERNEL __launch_bounds__(16 * WARPS_OF, 1) kernel_wide_##name(const __grid_constant__ rkv_products all) { \
    step_products<dtype, gated, 4, RKV_WIDE_TILES, 2, RKV_WIDE_STAGES, 1>(all);                             \
  }
STEP(bf16, RKV_BF16, 0)
STEP(gated_bf16, RKV_BF16, 1)
STEP(f16, RKV_F16, 0)
STEP(gated_f16, RKV_F16, 1)
