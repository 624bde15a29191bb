/* keep.cu: rows given back. Scores are pooled, the rows to keep chosen, and those moved to the front; a step can drop one row per head. */
#include "common.cuh"
#include "topk.cuh"

/* grid: rows of [begin, end), rows of pooled. */
KERNEL kernel_pool_scores(const __grid_constant__ rkv_pool_scores_args a) {
  begin();
  const int capacity = a.scores.shape[2], share = a.scores.shape[1] / a.pooled.shape[1], row = blockIdx.y, i = a.begin + blockIdx.x * THREADS + THREAD;
  if (i >= a.end) return;
  const float *scores = (const float *)a.scores.data + ((int64_t)a.slot * a.scores.shape[1] + (int64_t)row * share) * capacity;
  const int half = a.kernel / 2, chunk = a.begin + (i - a.begin) / a.kernel * a.kernel, is_chunk = a.mode == RKV_POOL_CHUNK;
  const int low = is_chunk ? chunk : most(a.begin, i - half), high = least(a.end, is_chunk ? chunk + a.kernel : i + half + 1);
  float x = a.mode == RKV_POOL_MAX ? -INFINITE : 0;
  for (int j = low; j < high; j++) {
    float score = scores[j];
    for (int s = 1; s < share; s++) score += scores[(int64_t)s * capacity + j];
    x = a.mode != RKV_POOL_MAX ? x + score : larger(score, x);
  }
  ((float *)a.pooled.data)[((int64_t)a.slot * a.pooled.shape[1] + row) * capacity + i] =
    a.mode == RKV_POOL_MEAN ? x / (float)a.kernel : is_chunk ? x / (float)(high - low) : x;
}

/* A block per row of scores. What is no number comes last, but counts: it is taken in row order when the numbers are not enough. */
KERNEL __launch_bounds__(1024) kernel_keep(const __grid_constant__ rkv_keep_args a) {
  begin();
  __shared__ unsigned digits[RKV_DIGITS];
  __shared__ int shared[34];
  const int n = a.keep.shape[1], k = a.keep.shape[2], row = blockIdx.x, width = a.end - a.begin;
  const float *scores = (const float *)a.scores.data + ((int64_t)a.slot * n + row) * a.scores.shape[2] + a.begin;
  int *keep = (int *)a.keep.data + ((int64_t)a.slot * n + row) * k;
  const int is_all = a.count >= width;
  int ties = 0, taken_all = 0;
  const unsigned last = is_all || a.count == 0 ? 0 : rank_of_kth(digits, shared, scores, width, place{0, -1}, a.count, &ties);
  for (int r = THREAD; r < a.begin; r += THREADS) keep[r] = r;
  for (int base = 0; base < width && a.count > 0; base += THREADS) {
    const int i = base + THREAD;
    const unsigned rank = i < width ? rank_of(scores[i]) : 0;
    const int is_tie = i < width && !is_all && rank == last;
    int tied, taken;
    __syncthreads();
    const int before = block_scan(is_tie, shared, &tied);
    const int is_taken = i < width && (is_all || rank < last || (is_tie && before < ties));
    __syncthreads();
    const int at = taken_all + block_scan(is_taken, shared, &taken);
    if (is_taken) keep[a.begin + at] = a.begin + i;
    ties -= tied;
    taken_all += taken;
  }
  const int rest = a.begin + taken_all, end = rest + a.row_end - a.end;
  for (int r = THREAD; r < k - rest; r += THREADS) keep[rest + r] = rest + r < end ? a.end + r : -1;
}

/* ---- kept rows ascend, so a batch of them is read before it is written, and no later one lies where it is written ---- */

typedef struct { char *rows; int64_t plane, stride, bytes; } moved_rows; /* plane: bytes between the heads' first rows */

#define BATCH 32
#define COLUMN 512 /* bytes of a row that a block moves */

/* grid: columns, heads; BATCH warps. keep[heads or 1][k]. */
KERNEL __launch_bounds__(32 * BATCH) kernel_move_rows(const __grid_constant__ moved_rows m, const int *keep, int k, int keep_heads, const int *row_end_of, int rows, int count) {
  begin();
  const int head = blockIdx.y, row_end = row_end_of ? *row_end_of : rows;
  const int64_t column = (int64_t)blockIdx.x * COLUMN, bytes = m.bytes - column < COLUMN ? m.bytes - column : COLUMN;
  char *base = m.rows + head * m.plane + column;
  const int is_wide = (((uintptr_t)base | (uintptr_t)m.stride | (uintptr_t)bytes) & 3) == 0;
  keep += (int64_t)(keep_heads == 1 ? 0 : head) * k;
  count = least(count, row_end);
  for (int first = 0; first < count; first += BATCH) {
    const int i = first + WARP, from = i < count ? keep[i] : -1, is_moved = from > i && from < row_end;
    unsigned held[4];
    char single[16];
    if (is_moved) {
      const char *source = base + from * m.stride;
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (is_wide && LANE * 4 + j * 128 < bytes) held[j] = *(const unsigned *)(source + LANE * 4 + j * 128);
      if (!is_wide)
#pragma unroll
        for (int j = 0; j < 16; j++)
          if (LANE + j * 32 < bytes) single[j] = source[LANE + j * 32];
    }
    __syncthreads();
    if (is_moved) {
      char *to = base + i * m.stride;
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (is_wide && LANE * 4 + j * 128 < bytes) *(unsigned *)(to + LANE * 4 + j * 128) = held[j];
      if (!is_wide)
#pragma unroll
        for (int j = 0; j < 16; j++)
          if (LANE + j * 32 < bytes) to[LANE + j * 32] = single[j];
    }
    __syncthreads();
  }
}

/* What came along is 0 behind the kept rows. grid: rows, heads. */
KERNEL kernel_clear_moved(float *also, int capacity, const int *row_end, int count) {
  begin();
  const int row = least(count, *row_end) + blockIdx.x * THREADS + THREAD;
  if (row < *row_end) also[(int64_t)blockIdx.y * capacity + row] = 0;
}

KERNEL kernel_cut_rows(int *row_end, int *tail_begin, int count) {
  begin();
  *row_end = least(*row_end, count);
  *tail_begin = least(*tail_begin, count);
}

/* ---- evict: a block per KV head and slot ---- */

DEVICE int is_full(const rkv_evict_args &a, const rkv_rows_data &kv, int slot) { return kv.active[slot] && kv.row_end[slot] > a.budget; }

KERNEL __launch_bounds__(256) kernel_evict(const __grid_constant__ rkv_evict_args a, const __grid_constant__ rkv_rows_data kv) {
  begin();
  __shared__ unsigned long long worst[8];
  const int head = blockIdx.x, slot = blockIdx.y, newest = kv.row_end[slot] - 1;
  if (!is_full(a, kv, slot)) return;
  const int64_t plane = ((int64_t)slot * kv.kv_heads + head) * kv.capacity;
  float *mass = (float *)a.mass.data + plane;
  const float *scores = (const float *)a.scores.data + plane;
  int *position = kv.position + plane;
  unsigned long long found = 0; /* the largest rank, then the lowest row */
  for (int r = a.sink + THREAD; r < newest; r += THREADS) {
    if (position[newest] - position[r] < a.recent) continue;
    const unsigned long long mine = (unsigned long long)rank_of(scores[r]) << 32 | (unsigned)(0x7fffffff - r);
    if (mine > found) found = mine;
  }
  for (int i = 16; i > 0; i /= 2) {
    const unsigned long long other = __shfl_xor_sync(0xffffffffu, found, i);
    if (other > found) found = other;
  }
  if (LANE == 0) worst[WARP] = found;
  __syncthreads();
  for (int w = 0; w < WARPS; w++)
    if (worst[w] > found) found = worst[w];
  const int victim = found == 0 ? newest : 0x7fffffff - (int)(unsigned)found;
  for (int t = 0; t < 2 && victim != newest; t++) {
    const rkv_view &view = t ? kv.values : kv.keys;
    const int64_t bytes = row_bytes(view.dtype, kv.head_dim);
    char *rows = (char *)view.data + plane * bytes;
    for (int i = THREAD; i < bytes; i += THREADS) rows[victim * bytes + i] = rows[newest * bytes + i];
  }
  __syncthreads();
  if (THREAD != 0) return;
  position[victim] = position[newest];
  mass[victim] = mass[newest];
  mass[newest] = 0;
}

KERNEL kernel_evicted(const __grid_constant__ rkv_evict_args a, const __grid_constant__ rkv_rows_data kv) {
  begin();
  for (int slot = THREAD; slot < kv.slots; slot += THREADS)
    if (is_full(a, kv, slot)) {
      kv.row_end[slot]--;
      kv.tail_begin[slot] = least(kv.tail_begin[slot], kv.row_end[slot]);
    }
}
