/* assign.cu: the nearest centroid of each key of a segment, by cosine: a product that ends in the running largest, ties to the lower id. Keys of
 * bf16 go on tensor cores, with centroids as two halves, which leaves 16 bits of them: a cosine is off by a few millionths at most. */
#include "mma.cuh"
#include "segment.cuh"

/* work[head, cluster] = 1 / |centroid|; 0 where it has no length: that counts as cosine 0. A warp per cluster. grid: clusters / warps, heads. */
KERNEL kernel_centroid_lengths(const __grid_constant__ rkv_assign_args a) {
  begin();
  const rkv_run &run = a.run;
  const int c = blockIdx.x * WARPS + WARP, head = blockIdx.y, dim = a.keys.shape[3];
  if (blockIdx.x == 0 && THREAD == 0) ((int *)a.work.data)[(int64_t)gridDim.y * run.clusters + head] = 0; /* no label has changed yet */
  if (c >= run.clusters || is_at_rest(a.moved, run, head)) return;
  const float *centroid = centroids_of(a.centroids, run, head) + (int64_t)c * dim;
  const float square = warp_dot(centroid, RKV_F32, centroid, dim);
  if (LANE == 0) ((float *)a.work.data)[(int64_t)head * run.clusters + c] = square > 0 && square < INFINITE ? 1 / sqrtf(square) : 0;
}

/* A product keys x centroids^T, 64 x 64 at a time, that ends in the running largest cosine. grid: key tiles, heads; 256 threads.
 * work[behind the lengths: head] = whether a label changed. */
#define KEYS RKV_ASSIGN_KEYS
#define CENTROIDS 64
#define DEPTH 32

KERNEL __launch_bounds__(256) kernel_assign(const __grid_constant__ rkv_assign_args a) {
  begin();
  __shared__ float ks[DEPTH][KEYS + 4], cs[DEPTH][CENTROIDS + 4];
  __shared__ int any[32];
  const rkv_run &run = a.run;
  const int head = blockIdx.y, dim = a.keys.shape[3], first = blockIdx.x * KEYS, dtype = a.keys.dtype, tx = THREAD % 16, ty = THREAD / 16;
  if (is_at_rest(a.moved, run, head)) return;
  const int64_t bytes = row_bytes(dtype, dim);
  const int eight = loads_eight(dtype, dim);
  const char *keys = keys_of(a.keys, run, head) + (int64_t)run.begin * bytes;
  const float *centroids = centroids_of(a.centroids, run, head), *inverse = (const float *)a.work.data + (int64_t)head * run.clusters;
  int *labels = ints(a.labels, run, head) + run.begin;
  float best[4];
  int label[4];
#pragma unroll
  for (int i = 0; i < 4; i++) best[i] = -INFINITE, label[i] = 0x7fffffff;
  for (int c0 = 0; c0 < run.clusters; c0 += CENTROIDS) {
    float sum[4][4];
#pragma unroll
    for (int i = 0; i < 16; i++) sum[i / 4][i % 4] = 0;
    for (int d0 = 0; d0 < dim; d0 += DEPTH) {
      __syncthreads();
      { /* 64 rows by four runs of eight channels, of keys and of centroids */
        const int r = THREAD / 4, d = THREAD % 4 * 8;
        float x[8] = {0}, y[8] = {0};
        if (first + r < run.rows) load8(x, dtype, keys + (first + r) * bytes, d0 + d, dim, eight);
        if (c0 + r < run.clusters) load8(y, RKV_F32, centroids + (int64_t)(c0 + r) * dim, d0 + d, dim, dim % 4 == 0);
        const float scale = dtype == RKV_Q8 && first + r < run.rows ? q8_scale(keys + (first + r) * bytes, dim) : 1;
#pragma unroll
        for (int i = 0; i < 8; i++) ks[d + i][r] = dtype == RKV_Q8 ? x[i] * scale : x[i], cs[d + i][r] = y[i];
      }
      __syncthreads();
#pragma unroll 8
      for (int d = 0; d < DEPTH; d++) {
        float x[4], y[4];
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = ks[d][ty * 4 + i], y[i] = cs[d][tx + 16 * i];
#pragma unroll
        for (int i = 0; i < 16; i++) sum[i / 4][i % 4] = fmaf(x[i / 4], y[i % 4], sum[i / 4][i % 4]);
      }
    }
#pragma unroll
    for (int j = 0; j < 4; j++) { /* centroids of a thread ascend: a tie stays with the lower */
      const int c = c0 + tx + 16 * j;
      if (c >= run.clusters) continue;
      const float length = inverse[c];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float cosine = sum[i][j] * length;
        if (cosine > best[i]) best[i] = cosine, label[i] = c;
      }
    }
  }
  int changed = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    for (int step = 8; step > 0; step /= 2) { /* over the 16 threads of a key */
      const float other = __shfl_xor_sync(0xffffffffu, best[i], step);
      const int whose = __shfl_xor_sync(0xffffffffu, label[i], step);
      if (other > best[i] || (other == best[i] && whose < label[i])) best[i] = other, label[i] = whose;
    }
    const int row = first + ty * 4 + i, found = label[i] == 0x7fffffff ? 0 : label[i]; /* no cosine was a number */
    if (tx == 0 && row < run.rows) {
      changed |= labels[row] != found;
      labels[row] = found;
    }
  }
  changed = block_sum_int(changed, any);
  if (THREAD == 0) atomicOr((int *)a.work.data + (int64_t)gridDim.y * run.clusters + head, changed != 0);
}

/* ---- keys of bf16: a warp has 32 of them in registers, a block's centroids pass in shared memory ---- */

#define PASS 32 /* centroids at a time */
#define PARTS 2 /* halves of a centroid */

__device__ int ended[RKV_TICKETS]; /* blocks of a head that are done: the last one says whether a label changed; 0 between launches */

/* A row of shared memory: channels of a centroid, first or second halves. */
template <int DIM>
DEVICE unsigned row_of_part(unsigned tiles, int part, int chunk, int c) { return chunk_at(tiles + part * PASS * DIM * 2, c, chunk, DIM * 2); }

/* An eighth of a centroid, which is eight threads'. */
template <int DIM>
struct share_of_centroid { float4 of[DIM / 64][2]; };

/* Of centroids [c0, c0 + PASS), zeros behind the last. */
template <int DIM>
DEVICE void load_centroids(share_of_centroid<DIM> &to, const float *centroids, int c0, int clusters) {
  const int c = c0 + THREAD / 8;
#pragma unroll
  for (int i = 0; i < DIM / 64; i++)
#pragma unroll
    for (int j = 0; j < 2; j++)
      to.of[i][j] = c < clusters ? *(const float4 *)(centroids + (int64_t)c * DIM + (i * 8 + THREAD % 8) * 8 + j * 4) : make_float4(0, 0, 0, 0);
}

/* As halves into shared memory; 1 / |centroid|, or 0 where it has no length: that counts as cosine 0. */
template <int DIM>
DEVICE void split_centroids(unsigned tiles, unsigned char *memory, float *inverse, const share_of_centroid<DIM> &from) {
  float square = 0;
#pragma unroll
  for (int i = 0; i < DIM / 64; i++) {
    const float4 u = from.of[i][0], v = from.of[i][1];
    square += u.x * u.x + u.y * u.y + u.z * u.z + u.w * u.w + v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    unsigned part[4][3];
    split<RKV_BF16>(part[0], u.x, u.y);
    split<RKV_BF16>(part[1], u.z, u.w);
    split<RKV_BF16>(part[2], v.x, v.y);
    split<RKV_BF16>(part[3], v.z, v.w);
#pragma unroll
    for (int p = 0; p < PARTS; p++)
      *(uint4 *)(memory + (row_of_part<DIM>(tiles, p, i * 8 + THREAD % 8, THREAD / 8) - tiles)) = make_uint4(part[0][p], part[1][p], part[2][p], part[3][p]);
  }
  for (int i = 4; i > 0; i /= 2) square += __shfl_xor_sync(0xffffffffu, square, i);
  if (THREAD % 8 == 0) inverse[THREAD / 8] = square > 0 && square < INFINITE ? 1 / sqrtf(square) : 0;
}

template <int DIM>
DEVICE void assign_halves(const rkv_assign_args &a) {
  __shared__ __align__(1024) unsigned char memory[PARTS * PASS * DIM * 2];
  __shared__ float inverse[PASS];
  const rkv_run &run = a.run;
  const int head = blockIdx.y, g = LANE / 4, t = LANE % 4, first = blockIdx.x * RKV_ASSIGN_TILE + WARP * 32;
  if (is_at_rest(a.moved, run, head)) return;
  const unsigned tiles = shared_address(memory);
  const char *keys = keys_of(a.keys, run, head) + (int64_t)run.begin * DIM * 2;
  const float *centroids = centroids_of(a.centroids, run, head);
  share_of_centroid<DIM> next;
  load_centroids<DIM>(next, centroids, 0, run.clusters);
  unsigned key[2][DIM / 16][4]; /* rows g and g + 8 of each sixteen */
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int row = first + m * 16 + r * 8 + g;
      const unsigned *from = (const unsigned *)(keys + (int64_t)least(row, run.rows - 1) * DIM * 2) + t;
#pragma unroll
      for (int k = 0; k < DIM / 16; k++) key[m][k][r] = from[k * 8], key[m][k][r + 2] = from[k * 8 + 4];
    }
  float best[4];
  int label[4];
#pragma unroll
  for (int i = 0; i < 4; i++) best[i] = -INFINITE, label[i] = 0x7fffffff;
  for (int c0 = 0; c0 < run.clusters; c0 += PASS) {
    __syncthreads();
    split_centroids<DIM>(tiles, memory, inverse, next);
    __syncthreads();
    load_centroids<DIM>(next, centroids, c0 + PASS, run.clusters);
#pragma unroll
    for (int n = 0; n < PASS; n += 16) {
      if (c0 + n >= run.clusters) break;
      float sum[2][2][4];
#pragma unroll
      for (int i = 0; i < 16; i++) sum[i / 8][i / 4 % 2][i % 4] = 0;
#pragma unroll
      for (int p = PARTS - 1; p >= 0; p--) /* the smaller first */
#pragma unroll
        for (int k = 0; k < DIM / 16; k++) {
          unsigned b[4];
          load_four(b, row_of_part<DIM>(tiles, p, k * 2 + LANE / 8 % 2, n + LANE / 16 * 8 + LANE % 8));
#pragma unroll
          for (int i = 0; i < 4; i++) multiply<RKV_BF16>(sum[i / 2][i % 2], key[i / 2][k], b[i % 2 * 2], b[i % 2 * 2 + 1]);
        }
#pragma unroll
      for (int j = 0; j < 2; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) { /* centroids of a lane ascend: a tie stays with the lower */
          const int c = n + j * 8 + t * 2 + e;
          if (c0 + c >= run.clusters) continue;
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const float cosine = sum[i / 2][j][i % 2 * 2 + e] * inverse[c];
            if (cosine > best[i]) best[i] = cosine, label[i] = c0 + c;
          }
        }
    }
  }
  int *labels = ints(a.labels, run, head) + run.begin, changed = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    for (int step = 2; step > 0; step /= 2) { /* over the four lanes of a key */
      const float other = __shfl_xor_sync(0xffffffffu, best[i], step);
      const int whose = __shfl_xor_sync(0xffffffffu, label[i], step);
      if (other > best[i] || (other == best[i] && whose < label[i])) best[i] = other, label[i] = whose;
    }
    const int row = first + i * 8 + g, found = label[i] == 0x7fffffff ? 0 : label[i]; /* no cosine was a number */
    if (t == 0 && row < run.rows) {
      changed |= labels[row] != found;
      labels[row] = found;
    }
  }
  changed = __syncthreads_or(changed);
  __shared__ int is_last;
  int *flags = (int *)a.work.data + (int64_t)head * gridDim.x; /* whether a label of a tile changed */
  if (THREAD == 0) {
    flags[blockIdx.x] = changed;
    __threadfence();
    is_last = atomicAdd(&ended[head], 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last || WARP > 0) return;
  __threadfence();
  int any = 0;
  for (int i = LANE; i < gridDim.x; i += 32) any |= __ldcg(flags + i);
  any = __any_sync(0xffffffffu, any);
  if (LANE == 0) *flag(a.moved, run, head) = any, ended[head] = 0;
}

/* grid: tiles of keys, heads. */
KERNEL __launch_bounds__(256, 2) kernel_assign_64(const __grid_constant__ rkv_assign_args a) { begin(); assign_halves<64>(a); }
KERNEL __launch_bounds__(256, 2) kernel_assign_128(const __grid_constant__ rkv_assign_args a) { begin(); assign_halves<128>(a); }

/* After the products above: moved = whether a label changed, which is the word of each head behind `before` others in work. */
KERNEL kernel_moved(const __grid_constant__ rkv_assign_args a, int before) {
  begin();
  const rkv_run &run = a.run;
  for (int head = THREAD; head < a.keys.shape[1]; head += THREADS)
    if (!is_at_rest(a.moved, run, head)) *flag(a.moved, run, head) = ((const int *)a.work.data)[before + head];
}
