/* cluster.cu: k-means over the keys of a segment, all KV heads of one slot at once. Cosine assignment, raw means, ties to the lower id.
 * Heads whose labels are at rest return at once: the host never asks. */
#include "common.cuh"

DEVICE int64_t plane_of(const rkv_view &view, const rkv_run &run, int head) { return (int64_t)run.slot * view.shape[1] + head; }
DEVICE int *ints(const rkv_view &view, const rkv_run &run, int head) { return (int *)view.data + plane_of(view, run, head) * view.shape[2]; }
DEVICE float *centroids_of(const rkv_view &view, const rkv_run &run, int head) {
  return (float *)view.data + (plane_of(view, run, head) * view.shape[2] + run.cluster) * view.shape[3];
}
DEVICE const char *keys_of(const rkv_view &view, const rkv_run &run, int head) {
  return (const char *)view.data + plane_of(view, run, head) * view.shape[2] * row_bytes(view.dtype, view.shape[3]);
}
DEVICE int *flag(const rkv_view &moved, const rkv_run &run, int head) { return (int *)moved.data + (int64_t)run.slot * moved.shape[1] + head; }
DEVICE int is_at_rest(const rkv_view &moved, const rkv_run &run, int head) { return moved.data && !*flag(moved, run, head); }

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
 * work[behind the lengths: head, tile] = whether a label changed. */
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

/* moved = whether a label changed. A thread per head. */
KERNEL kernel_moved(const __grid_constant__ rkv_assign_args a) {
  begin();
  const rkv_run &run = a.run;
  const int heads = a.keys.shape[1];
  for (int head = THREAD; head < heads; head += THREADS) {
    if (!is_at_rest(a.moved, run, head)) *flag(a.moved, run, head) = ((const int *)a.work.data)[(int64_t)heads * run.clusters + head];
  }
}

/* ---- group: a counting sort. A block per head; a warp has a run of neighbouring rows, and counts of its own: so members stay in row order ---- */

DEVICE int label_at(const int *labels, int i, int clusters) { return (unsigned)labels[i] < (unsigned)clusters ? labels[i] : 0; }

/* counts[WARPS][clusters] of shared memory. */
KERNEL __launch_bounds__(1024) kernel_group(const __grid_constant__ rkv_group_args a) {
  extern __shared__ int counts[];
  __shared__ int shared[33];
  begin();
  const rkv_run &run = a.run;
  const int head = blockIdx.x, clusters = run.clusters, share = ceil_div(ceil_div(run.rows, WARPS), 32) * 32, first = WARP * share, end = least(run.rows, first + share);
  if (is_at_rest(a.moved, run, head)) return;
  const int *labels = ints(a.labels, run, head) + run.begin;
  int *order = ints(a.order, run, head), *offsets = ints(a.offsets, run, head) + run.cluster, *mine = counts + WARP * clusters;
  for (int c = LANE; c < clusters; c += 32) mine[c] = 0;
  __syncwarp();
  for (int i = first; i < end; i += 32) {
    const int label = i + LANE < end ? label_at(labels, i + LANE, clusters) : -1;
    const unsigned peers = __match_any_sync(0xffffffffu, label);
    if (label >= 0 && __ffs(peers) - 1 == LANE) mine[label] += __popc(peers);
    __syncwarp();
  }
  __syncthreads();
  int base = run.begin;
  for (int at = 0; at < clusters; at += THREADS) { /* counts become places: cluster by cluster, in each warp by warp */
    const int c = at + THREAD;
    int count = 0, all;
    for (int w = 0; w < WARPS && c < clusters; w++) count += counts[w * clusters + c];
    int place = base + block_scan(count, shared, &all);
    if (c < clusters) offsets[c + 1] = place + count;
    for (int w = 0; w < WARPS && c < clusters; w++) {
      const int held = counts[w * clusters + c];
      counts[w * clusters + c] = place;
      place += held;
    }
    base += all;
  }
  if (THREAD == 0) offsets[0] = run.begin;
  __syncthreads();
  for (int i = first; i < end; i += 32) {
    const int label = i + LANE < end ? label_at(labels, i + LANE, clusters) : -1;
    const unsigned peers = __match_any_sync(0xffffffffu, label);
    if (label >= 0) order[mine[label] + __popc(peers & ((1u << LANE) - 1))] = run.begin + i + LANE;
    __syncwarp();
    if (label >= 0 && __ffs(peers) - 1 == LANE) mine[label] += __popc(peers);
    __syncwarp();
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

/* ---- means: a thread per channel; members in order, RKV_PIECE at a time, then those sums. A second pass adds the mean of what the first one
 * left over: the mean of equal keys is then that key to the bit. grid: clusters, heads ---- */

#define MEMBERS 512 /* row numbers that a block holds */

/* Offset c cut to the run, and a row of it for any entry of `order`: both are a caller's, and may say anything. */
DEVICE int offset_of(const int *offsets, int c, const rkv_run &run) { return most(run.begin, least(offsets[c], run.begin + run.rows)); }
DEVICE int row_of(int entry, const rkv_run &run) {
  const unsigned in_run = (unsigned)entry - (unsigned)run.begin;
  return run.begin + (in_run < (unsigned)run.rows ? (int)in_run : 0);
}

template <int DTYPE>
DEVICE float sum_members(const char *keys, int64_t bytes, const int *members, int count, int d, int dim, float mean) {
  float sum = 0;
#pragma unroll 16
  for (int m = 0; m < count; m++) {
    const float x = raw_at(DTYPE, keys + members[m] * bytes, d);
    sum += (DTYPE == RKV_Q8 ? x * q8_scale(keys + members[m] * bytes, dim) : x) - mean;
  }
  return sum;
}

KERNEL __launch_bounds__(128) kernel_centroid_means(const __grid_constant__ rkv_centroid_means_args a) {
  __shared__ int held[MEMBERS];
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
  for (int first = 0; first < dim; first += THREADS) {
    const int d = first + THREAD;
    float mean = 0;
    for (int pass = 0; pass < 2; pass++) {
      float total = 0;
      for (int at = 0; at < count; at += MEMBERS) {
        const int here = least(MEMBERS, count - at);
        __syncthreads();
        for (int m = THREAD; m < here; m += THREADS) held[m] = row_of(members[at + m], run);
        __syncthreads();
        for (int from = 0; from < here && d < dim; from += RKV_PIECE) {
          const int n = least(RKV_PIECE, here - from);
          switch (dtype) {
            case RKV_F16: total += sum_members<RKV_F16>(keys, bytes, held + from, n, d, dim, mean); break;
            case RKV_BF16: total += sum_members<RKV_BF16>(keys, bytes, held + from, n, d, dim, mean); break;
            case RKV_Q8: total += sum_members<RKV_Q8>(keys, bytes, held + from, n, d, dim, mean); break;
            default: total += sum_members<RKV_F32>(keys, bytes, held + from, n, d, dim, mean);
          }
        }
      }
      mean += total / (float)count;
    }
    if (d < dim) centroids_of(a.centroids, run, head)[(int64_t)c * dim + d] = mean;
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
