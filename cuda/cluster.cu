/* cluster.cu: k-means over the keys of a segment, all KV heads of one slot at once. Cosine assignment, raw means, ties to the lower id.
 * Heads whose labels are at rest return at once: the host never asks. */
#include "segment.cuh"

/* grid: clusters, heads. */
KERNEL kernel_seed_centroids(const __grid_constant__ rkv_seed_centroids_args a) {
  begin();
  const rkv_run &run = a.run;
  const int c = blockIdx.x, head = blockIdx.y, dim = a.keys.shape[3];
  const int64_t row = run.begin + (2 * (int64_t)c + 1) * run.rows / (2 * (int64_t)run.clusters);
  const char *key = keys_of(a.keys, run, head) + row * row_bytes(a.keys.dtype, dim);
  float *centroid = centroids_of(a.centroids, run, head) + (int64_t)c * dim;
  for (int d = THREAD; d < dim; d += THREADS) centroid[d] = at_row(a.keys.dtype, key, d, dim);
  int *labels = ints(a.labels, run, head) + run.begin;
  for (int i = c * THREADS + THREAD; i < run.rows; i += gridDim.x * THREADS) labels[i] = -1;
  if (c == 0 && THREAD == 0) *flag(a.moved, run, head) = 1;
}

/* ---- group: a counting sort. A block per head; a warp has a run of neighbouring rows, and counts of its own: so members stay in row order ---- */

DEVICE int label_at(const int *labels, int i, int clusters) { return (unsigned)labels[i] < (unsigned)clusters ? labels[i] : 0; }

#define AT_ONCE 8 /* labels of a lane, asked for together; counts too */

/* Labels i + LANE, i + 32 + LANE, ... of rows before `end`; behind it -1. */
DEVICE void load_labels(int found[AT_ONCE], const int *labels, int i, int end, int clusters) {
#pragma unroll
  for (int j = 0; j < AT_ONCE; j++) found[j] = i + j * 32 + LANE < end ? label_at(labels, i + j * 32 + LANE, clusters) : -1;
}

/* counts[WARPS][clusters] of shared memory. */
KERNEL __launch_bounds__(1024) kernel_group(const __grid_constant__ rkv_group_args a) {
  extern __shared__ int counts[];
  __shared__ int shared[33];
  begin();
  const rkv_run &run = a.run;
  const int head = blockIdx.x, clusters = run.clusters, share = ceil_div(ceil_div(run.rows, WARPS), 32) * 32, first = WARP * share, end = least(run.rows, first + share);
  if (is_at_rest(a.moved, run, head)) return;
  const int *labels = ints(a.labels, run, head) + run.begin;
  int *order = ints(a.order, run, head), *offsets = ints(a.offsets, run, head) + run.cluster, *mine = counts + WARP * clusters, found[AT_ONCE];
  load_labels(found, labels, first, end, clusters);
  for (int c = LANE; c < clusters; c += 32) mine[c] = 0;
  __syncwarp();
  for (int i = first; i < end; i += 32 * AT_ONCE) {
    if (i > first) load_labels(found, labels, i, end, clusters);
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++)
      if (found[j] >= 0) atomicAdd(mine + found[j], 1);
  }
  __syncthreads();
  int base = run.begin;
  for (int at = 0; at < clusters; at += THREADS) { /* counts become places: cluster by cluster, in each warp by warp */
    const int c = at + THREAD, is_there = c < clusters;
    int count = 0, all;
    for (int w = 0; w < WARPS && is_there; w += AT_ONCE)
#pragma unroll
      for (int j = 0; j < AT_ONCE; j++) count += counts[(w + j) * clusters + c];
    int place = base + block_scan(count, shared, &all);
    if (is_there) offsets[c + 1] = place + count;
    for (int w = 0; w < WARPS && is_there; w += AT_ONCE) {
      int held[AT_ONCE];
#pragma unroll
      for (int j = 0; j < AT_ONCE; j++) held[j] = counts[(w + j) * clusters + c];
#pragma unroll
      for (int j = 0; j < AT_ONCE; j++) counts[(w + j) * clusters + c] = place, place += held[j];
    }
    base += all;
  }
  if (THREAD == 0) offsets[0] = run.begin;
  __syncthreads();
  if (share > 32 * AT_ONCE) load_labels(found, labels, first, end, clusters);
  for (int i = first; i < end; i += 32 * AT_ONCE) {
    if (i > first) load_labels(found, labels, i, end, clusters);
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++) {
      const unsigned peers = __match_any_sync(0xffffffffu, found[j]);
      if (found[j] >= 0) order[mine[found[j]] + __popc(peers & ((1u << LANE) - 1))] = run.begin + i + j * 32 + LANE;
      __syncwarp();
      if (found[j] >= 0 && __ffs(peers) - 1 == LANE) mine[found[j]] += __popc(peers);
      __syncwarp();
    }
  }
}

/* ---- the same where the counts of so many clusters do not fit: a warp per cluster looks at all labels, so that members stay in row order. grid: clusters / warps, heads ---- */

KERNEL kernel_group_count(const __grid_constant__ rkv_group_args a) {
  begin();
  const rkv_run &run = a.run;
  const int c = blockIdx.x * WARPS + WARP, head = blockIdx.y;
  if (c >= run.clusters || is_at_rest(a.moved, run, head)) return;
  const int *labels = ints(a.labels, run, head) + run.begin;
  int count = 0;
  for (int i = LANE; i < run.rows; i += 32) count += label_at(labels, i, run.clusters) == c;
  count = warp_sum_int(count);
  if (LANE == 0) ints(a.offsets, run, head)[run.cluster + c + 1] = count;
}

/* Counts to places. A block per head. */
KERNEL kernel_group_scan(const __grid_constant__ rkv_group_args a) {
  begin();
  __shared__ int shared[33];
  const rkv_run &run = a.run;
  const int head = blockIdx.x;
  if (is_at_rest(a.moved, run, head)) return;
  int *offsets = ints(a.offsets, run, head) + run.cluster, base = run.begin;
  for (int first = 0; first < run.clusters; first += THREADS) {
    const int c = first + THREAD, count = c < run.clusters ? offsets[c + 1] : 0;
    int total;
    const int before = block_scan(count, shared, &total);
    if (c < run.clusters) offsets[c + 1] = base + before + count;
    base += total;
  }
  if (THREAD == 0) offsets[0] = run.begin;
}

KERNEL kernel_group_place(const __grid_constant__ rkv_group_args a) {
  begin();
  const rkv_run &run = a.run;
  const int c = blockIdx.x * WARPS + WARP, head = blockIdx.y;
  if (c >= run.clusters || is_at_rest(a.moved, run, head)) return;
  const int *labels = ints(a.labels, run, head) + run.begin;
  int *order = ints(a.order, run, head), at = ints(a.offsets, run, head)[run.cluster + c];
  for (int first = 0; first < run.rows; first += 32) {
    const int i = first + LANE, is_member = i < run.rows && label_at(labels, i, run.clusters) == c;
    const unsigned members = __ballot_sync(0xffffffffu, is_member);
    if (is_member) order[at + __popc(members & ((1u << LANE) - 1))] = run.begin + i;
    at += __popc(members);
  }
}

/* ---- means: a thread has four channels of every so-and-so-many-th member, and those sums are joined in order. A second pass adds the mean of
 * what the first one left over: the mean of equal keys is then that key to the bit. grid: clusters, heads ---- */

#define MEMBERS 512 /* row numbers that a block holds */

/* Offset c cut to the run, and a row of it for any entry of `order`: both are a caller's, and may say anything. */
DEVICE int offset_of(const int *offsets, int c, const rkv_run &run) { return most(run.begin, least(offsets[c], run.begin + run.rows)); }
DEVICE int row_of(int entry, const rkv_run &run) {
  const unsigned in_run = (unsigned)entry - (unsigned)run.begin;
  return run.begin + (in_run < (unsigned)run.rows ? (int)in_run : 0);
}

/* Adds channels [d, d + 4) of members `first`, `first` + `every`, ..., less what `mean` says; eight are asked for together. */
template <int DTYPE, int WHOLE>
DEVICE void add_members(float sum[4], const char *keys, int64_t bytes, const int *members, int first, int every, int count, int d, int dim, const float mean[4]) {
  for (int m = first; m < count; m += 8 * every) {
    float x[8][4];
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const int at = m + j * every;
      const char *row = keys + members[at < count ? at : m] * bytes;
      load4<DTYPE, WHOLE>(x[j], row, d, dim);
      const float scale = DTYPE == RKV_Q8 ? q8_scale(row, dim) : 1;
#pragma unroll
      for (int i = 0; i < 4; i++) x[j][i] = DTYPE == RKV_Q8 ? x[j][i] * scale : x[j][i];
    }
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) sum[i] += m + j * every < count ? x[j][i] - mean[i] : 0;
  }
}

#define ADD(dtype)                                                                                \
  dim % 4 == 0 ? add_members<dtype, 1>(sum, keys, bytes, held, group, groups, here, d, dim, mean) \
               : add_members<dtype, 0>(sum, keys, bytes, held, group, groups, here, d, dim, mean)

KERNEL __launch_bounds__(RKV_MEANS) kernel_centroid_means(const __grid_constant__ rkv_centroid_means_args a) {
  __shared__ int held[MEMBERS];
  __shared__ float4 parts[RKV_MEANS];
  begin();
  const rkv_run &run = a.run;
  const int c = blockIdx.x, head = blockIdx.y, dim = a.keys.shape[3], dtype = a.keys.dtype;
  if (is_at_rest(a.moved, run, head)) return;
  const int *offsets = ints(a.offsets, run, head) + run.cluster;
  const int begin_m = offset_of(offsets, c, run), count = offset_of(offsets, c + 1, run) - begin_m;
  const int *members = ints(a.order, run, head) + begin_m;
  if (count <= 0) return;
  const int64_t bytes = row_bytes(dtype, dim);
  const char *keys = keys_of(a.keys, run, head);
  const int across = dim <= 64 ? 16 : 32, place = THREAD % across, group = THREAD / across, groups = RKV_MEANS / across; /* threads of a row; rows at once */
  for (int first = 0; first < dim; first += 4 * across) {
    const int d = first + 4 * place;
    float mean[4] = {0};
    for (int pass = 0; pass < 2; pass++) {
      float sum[4] = {0}, total[4] = {0};
      for (int at = 0; at < count; at += MEMBERS) {
        const int here = least(MEMBERS, count - at);
        if (count > MEMBERS || pass + first == 0) { /* not yet, or no longer */
          __syncthreads();
          for (int m = THREAD; m < here; m += RKV_MEANS) held[m] = row_of(members[at + m], run);
          __syncthreads();
        }
        if (d >= dim) continue;
        switch (dtype) {
          case RKV_F16: ADD(RKV_F16); break;
          case RKV_BF16: ADD(RKV_BF16); break;
          case RKV_Q8: ADD(RKV_Q8); break;
          default: ADD(RKV_F32);
        }
      }
      __syncthreads(); /* the parts before these were used */
      parts[THREAD] = make_float4(sum[0], sum[1], sum[2], sum[3]);
      __syncthreads();
      for (int g = 0; g < groups; g++) {
        const float4 part = parts[g * across + place];
        total[0] += part.x, total[1] += part.y, total[2] += part.z, total[3] += part.w;
      }
#pragma unroll
      for (int i = 0; i < 4; i++) mean[i] += total[i] / (float)count;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (group == 0 && d + i < dim) centroids_of(a.centroids, run, head)[(int64_t)c * dim + d + i] = mean[i];
  }
}

/* A warp per member. grid: clusters, heads. */
KERNEL kernel_radius(const __grid_constant__ rkv_radius_args a) {
  begin();
  __shared__ float shared[32];
  const rkv_run &run = a.run;
  const int c = blockIdx.x, head = blockIdx.y, dim = a.keys.shape[3], dtype = a.keys.dtype;
  const int *order = ints(a.order, run, head), *offsets = ints(a.offsets, run, head) + run.cluster;
  const char *keys = keys_of(a.keys, run, head);
  const float *centroid = centroids_of(a.centroids, run, head) + (int64_t)c * dim;
  float farthest = 0;
  const int end = offset_of(offsets, c + 1, run);
  for (int m = offset_of(offsets, c, run) + WARP; m < end; m += WARPS) {
    const char *key = keys + row_of(order[m], run) * row_bytes(dtype, dim);
    float square = 0;
    for (int d = LANE; d < dim; d += 32) {
      const float apart = at_row(dtype, key, d, dim) - centroid[d];
      square = fmaf(apart, apart, square);
    }
    farthest = larger(warp_sum(square), farthest);
  }
  farthest = block_max(farthest, shared);
  if (THREAD == 0) ((float *)a.radius.data)[plane_of(a.radius, run, head) * a.radius.shape[2] + run.cluster + c] = sqrtf(farthest);
}

/* ---- rows into the order of `group`: gathered into work, then copied back. A warp per row. grid: rows / warps, heads ---- */

/* A warp moves bytes, as wide as addresses and size allow. */
DEVICE void move_bytes(char *to, const char *from, int64_t bytes) {
  const uintptr_t all = (uintptr_t)to | (uintptr_t)from | (uintptr_t)bytes;
  if (all % 16 == 0)
    for (int64_t i = LANE; i < bytes / 16; i += 32) ((uint4 *)to)[i] = ((const uint4 *)from)[i];
  else if (all % 4 == 0)
    for (int64_t i = LANE; i < bytes / 4; i += 32) ((unsigned *)to)[i] = ((const unsigned *)from)[i];
  else
    for (int64_t i = LANE; i < bytes; i += 32) to[i] = from[i];
}

DEVICE void permute(const rkv_permute_rows_args &a, int is_back) {
  const rkv_run &run = a.run;
  const int i = blockIdx.x * WARPS + WARP, head = blockIdx.y;
  if (i >= run.rows) return;
  const int64_t bytes = row_bytes(a.tensor.dtype, a.tensor.rank == 4 ? a.tensor.shape[3] : 1);
  char *rows = (char *)a.tensor.data + (plane_of(a.tensor, run, head) * a.tensor.shape[2] + run.begin) * bytes;
  char *work = (char *)a.work.data + ((int64_t)head * run.rows + i) * bytes;
  const unsigned from = (unsigned)(ints(a.order, run, head)[run.begin + i] - run.begin);
  if (is_back) move_bytes(rows + i * bytes, work, bytes);
  else move_bytes(work, rows + (from < (unsigned)run.rows ? from : i) * bytes, bytes);
}
KERNEL kernel_permute(const __grid_constant__ rkv_permute_rows_args a) { begin(); permute(a, 0); }
KERNEL kernel_permute_back(const __grid_constant__ rkv_permute_rows_args a) { begin(); permute(a, 1); }
