/* cluster.c: k-means over the keys of a segment, all KV heads of one slot at once. Cosine assignment, raw means, ties to the lower id. */
#include "cpu.h"
#include "rowtypes.h"

/* What the ops of a run share: the planes of one head of the run's slot. */
static int64_t plane(const rkv_view *view, const rkv_run *run, int32_t head) { return (int64_t)run->slot * view->shape[1] + head; }

static int32_t *ints(const rkv_view *view, const rkv_run *run, int32_t head) {
  return (int32_t *)view->data + plane(view, run, head) * view->shape[2];
}
static float *centroids_of(const rkv_view *view, const rkv_run *run, int32_t head) {
  return (float *)view->data + (plane(view, run, head) * view->shape[2] + run->cluster) * view->shape[3];
}
static const char *keys_of(const rkv_view *view, const rkv_run *run, int32_t head) {
  return (const char *)view->data + (size_t)(plane(view, run, head) * view->shape[2]) * rkv_row_bytes(view->dtype, view->shape[3]);
}
static int32_t *flag(const rkv_view *moved, const rkv_run *run, int32_t head) {
  return (int32_t *)moved->data + (int64_t)run->slot * moved->shape[1] + head;
}
static int32_t is_at_rest(const rkv_view *moved, const rkv_run *run, int32_t head) { return moved->data && !*flag(moved, run, head); }

/* ---- seed_centroids: a head per piece -------------------------------------------------------------------------------------------- */

int32_t RKV_FN(rkv_seed_centroids_pieces)(const void *args, int32_t stage) {
  const rkv_seed_centroids_args *a = args;
  return stage == 0 ? a->keys.shape[1] : RKV_DONE;
}

void RKV_FN(rkv_seed_centroids_run)(const void *args, int32_t stage, int32_t head, void *scratch) {
  (void)stage, (void)scratch;
  const rkv_seed_centroids_args *a = args;
  const rkv_run *run = &a->run;
  const int32_t dim = a->keys.shape[3];
  const size_t row_bytes = rkv_row_bytes(a->keys.dtype, dim);
  const char *keys = keys_of(&a->keys, run, head);
  float *centroid = centroids_of(&a->centroids, run, head);
  for (int32_t c = 0; c < run->clusters; c++) {
    const int64_t row = run->begin + (2 * (int64_t)c + 1) * run->rows / (2 * (int64_t)run->clusters);
    rkv_row_to_f32(centroid + (int64_t)c * dim, keys + (size_t)row * row_bytes, a->keys.dtype, dim);
  }
  memset(ints(&a->labels, run, head) + run->begin, 0xff, (size_t)run->rows * 4);
  *flag(&a->moved, run, head) = 1;
}

/* ---- assign: RKV_PIECE keys of a head per piece ------------------------------------------------------------------------------------
 * A product keys x centroids^T whose tiles end in the running argmax instead of memory. Centroids are transposed a panel at a time;
 * transposing one costs about a hundredth of using it on RKV_PIECE keys, so each piece makes its own. */

#define TILE_KEYS (RKV_LANES == 16 ? 8 : 4) /* with two vectors of centroids: enough sums to hide the multipliers' latency, in registers */
#define PANEL (2 * RKV_LANES)

/* What a piece keeps in scratch, all of it in vectors so that it stays aligned. */
typedef struct {
  rkv_vec best[RKV_PIECE];   /* per key and lane: the largest cosine so far, and whose */
  rkv_ivec label[RKV_PIECE];
  rkv_vec inverse[2];        /* 1 / |centroid| of the panel */
  float rest[];              /* the panel [dim, PANEL], then the keys [block, dim] */
} assign_scratch;

/* panel[k, c] = channel k of centroid c. A centroid without length counts as cosine 0; past the last one the NaN wins over nothing. */
static void pack_panel(assign_scratch *s, const float *centroids, int32_t count, int32_t dim) {
  rkv_vec squares[2] = {{0}, {0}};
  for (int32_t v = 0; v < 2; v++)
    for (int32_t k = 0; k < dim; k += RKV_LANES) {
      const int32_t width = rkv_min_int(RKV_LANES, dim - k);
      rkv_vec block[RKV_LANES];
      for (int32_t i = 0; i < RKV_LANES; i++) {
        const int32_t c = v * RKV_LANES + i;
        const float *from = centroids + (int64_t)c * dim + k;
        block[i] = c >= count ? (rkv_vec){0} : width == RKV_LANES ? rkv_load(from) : rkv_load_part(from, width);
      }
      rkv_transpose(block);
      for (int32_t i = 0; i < width; i++) {
        squares[v] = rkv_fma(block[i], block[i], squares[v]);
        rkv_store(s->rest + (int64_t)(k + i) * PANEL + v * RKV_LANES, block[i]);
      }
    }
  for (int32_t c = 0; c < PANEL; c++) {
    const float square = squares[c / RKV_LANES][c % RKV_LANES];
    s->inverse[c / RKV_LANES][c % RKV_LANES] = c >= count ? NAN : square > 0 && square < INFINITY ? 1 / sqrtf(square) : 0;
  }
}

/* Keys [at, at + TILE_KEYS) against the panel that begins with centroid `first`. */
static void tile(assign_scratch *s, const float *keys, int32_t at, int32_t first, int32_t dim) {
  rkv_vec sum[TILE_KEYS][2];
  RKV_UNROLL for (int32_t i = 0; i < TILE_KEYS; i++) sum[i][0] = sum[i][1] = (rkv_vec){0};
  const float *panel = s->rest;
  for (int32_t k = 0; k < dim; k++) {
    const rkv_vec c0 = rkv_load(panel + (int64_t)k * PANEL), c1 = rkv_load(panel + (int64_t)k * PANEL + RKV_LANES);
    RKV_UNROLL for (int32_t i = 0; i < TILE_KEYS; i++) {
      const rkv_vec x = rkv_set1(keys[(int64_t)i * dim + k]);
      sum[i][0] = rkv_fma(x, c0, sum[i][0]);
      sum[i][1] = rkv_fma(x, c1, sum[i][1]);
    }
  }
  rkv_ivec id;
  for (int32_t i = 0; i < RKV_LANES; i++) id[i] = first + i;
  RKV_UNROLL for (int32_t v = 0; v < 2; v++, id += RKV_LANES)
    RKV_UNROLL for (int32_t i = 0; i < TILE_KEYS; i++) {
      const rkv_vec cosine = sum[i][v] * s->inverse[v];
      const rkv_ivec wins = cosine > s->best[at + i];
      s->best[at + i] = rkv_select(wins, cosine, s->best[at + i]);
      s->label[at + i] = (wins & id) | (~wins & s->label[at + i]);
    }
}

/* The largest over the lanes, ties to the lower id; 0 where no cosine was a number. */
static int32_t label_of(rkv_vec best, rkv_ivec label) {
  const float top = rkv_max_lane(best);
  int32_t lowest = INT32_MAX;
  for (int32_t i = 0; i < RKV_LANES; i++)
    if (best[i] == top && label[i] < lowest) lowest = label[i];
  return lowest;
}

int32_t RKV_FN(rkv_assign_pieces)(const void *args, int32_t stage) {
  const rkv_assign_args *a = args;
  const rkv_run *run = &a->run;
  const int32_t pieces = rkv_ceil_div(run->rows, RKV_PIECE), heads = a->keys.shape[1];
  if (stage == 0) return heads * pieces;
  const int32_t *changed = a->work.data;
  for (int32_t head = 0; head < heads; head++) {
    if (is_at_rest(&a->moved, run, head)) continue;
    int32_t any = 0;
    for (int32_t p = 0; p < pieces; p++) any |= changed[head * pieces + p];
    *flag(&a->moved, run, head) = any;
  }
  return RKV_DONE;
}

void RKV_FN(rkv_assign_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  (void)stage;
  const rkv_assign_args *a = args;
  const rkv_run *run = &a->run;
  const int32_t pieces = rkv_ceil_div(run->rows, RKV_PIECE), head = piece / pieces, dim = a->keys.shape[3];
  if (is_at_rest(&a->moved, run, head)) return;
  const size_t row_bytes = rkv_row_bytes(a->keys.dtype, dim);
  const int32_t end = rkv_min_int(run->rows, (piece % pieces + 1) * RKV_PIECE);
  const char *keys = keys_of(&a->keys, run, head) + (size_t)run->begin * row_bytes;
  const float *centroids = centroids_of(&a->centroids, run, head);
  int32_t *labels = ints(&a->labels, run, head) + run->begin;

  assign_scratch *s = scratch;
  float *block = s->rest + (size_t)dim * PANEL;
  const int64_t room = (int64_t)(RKV_SCRATCH - sizeof *s) / 4 - (int64_t)dim * PANEL;
  const int32_t most = rkv_min_int(RKV_PIECE, (int32_t)(room / dim) / TILE_KEYS * TILE_KEYS);
  int32_t changed = 0;
  for (int32_t begin = piece % pieces * RKV_PIECE; begin < end; begin += most) {
    const int32_t count = rkv_min_int(most, end - begin), padded = rkv_ceil_div(count, TILE_KEYS) * TILE_KEYS;
    for (int32_t i = 0; i < count; i++) rkv_row_to_f32(block + (int64_t)i * dim, keys + (size_t)(begin + i) * row_bytes, a->keys.dtype, dim);
    memset(block + (int64_t)count * dim, 0, (size_t)(padded - count) * dim * 4);
    for (int32_t i = 0; i < padded; i++) s->best[i] = rkv_set1(-INFINITY), s->label[i] = (rkv_ivec){0};
    for (int32_t c = 0; c < run->clusters; c += PANEL) {
      pack_panel(s, centroids + (int64_t)c * dim, run->clusters - c, dim);
      for (int32_t i = 0; i < padded; i += TILE_KEYS) tile(s, block + (int64_t)i * dim, i, c, dim);
    }
    for (int32_t i = 0; i < count; i++) {
      const int32_t label = label_of(s->best[i], s->label[i]);
      changed |= labels[begin + i] != label;
      labels[begin + i] = label;
    }
  }
  ((int32_t *)a->work.data)[piece] = changed;
}

/* ---- group: a counting sort, a head per piece ------------------------------------------------------------------------------------ */

int32_t RKV_FN(rkv_group_pieces)(const void *args, int32_t stage) {
  const rkv_group_args *a = args;
  return stage == 0 ? a->labels.shape[1] : RKV_DONE;
}

void RKV_FN(rkv_group_run)(const void *args, int32_t stage, int32_t head, void *scratch) {
  (void)stage, (void)scratch;
  const rkv_group_args *a = args;
  const rkv_run *run = &a->run;
  if (is_at_rest(&a->moved, run, head)) return;
  const int32_t *labels = ints(&a->labels, run, head) + run->begin;
  int32_t *order = ints(&a->order, run, head), *offsets = ints(&a->offsets, run, head) + run->cluster;
  const uint32_t clusters = (uint32_t)run->clusters;
  /* A label that is none (never assigned) counts as 0, so that `order` stays a permutation. offsets[c + 1] counts, then walks through
   * cluster c + 1's place and so ends where the next one begins: one array serves as count, cursor and result. */
#define LABEL(i) ((uint32_t)labels[i] < clusters ? (uint32_t)labels[i] : 0)
  memset(offsets, 0, ((size_t)clusters + 1) * 4);
  for (int32_t i = 0; i < run->rows; i++) offsets[LABEL(i) + 1]++;
  int32_t at = run->begin;
  for (uint32_t c = 1; c <= clusters; c++) {
    const int32_t count = offsets[c];
    offsets[c] = at;
    at += count;
  }
  for (int32_t i = 0; i < run->rows; i++) order[offsets[LABEL(i) + 1]++] = run->begin + i;
  offsets[0] = run->begin;
#undef LABEL
}

/* ---- centroid_means: CLUSTERS clusters of a head per piece ------------------------------------------------------------------------- */

#define CLUSTERS 8 /* at 80 members of 128 channels about 10 us */

int32_t RKV_FN(rkv_centroid_means_pieces)(const void *args, int32_t stage) {
  const rkv_centroid_means_args *a = args;
  return stage == 0 ? a->keys.shape[1] * rkv_ceil_div(a->run.clusters, CLUSTERS) : RKV_DONE;
}

/* Offset c cut to the run, and a row of it for any entry of `order`: both are a caller's, and may say anything. */
static int32_t offset_of(const int32_t *offsets, int32_t c, const rkv_run *run) {
  return rkv_max_int(run->begin, rkv_min_int(offsets[c], run->begin + run->rows));
}
RKV_INLINE size_t row_of(int32_t entry, const rkv_run *run) {
  const uint32_t in_run = (uint32_t)entry - (uint32_t)run->begin;
  return (size_t)run->begin + (in_run < (uint32_t)run->rows ? in_run : 0);
}

/* RKV_LANES channels of a row from k on, its last `part` ones where part > 0. */
RKV_INLINE rkv_vec channels(const char *row, int32_t dim, int32_t k, int32_t part, int32_t dtype) {
  const rkv_vec x = part ? rkv_row_load_part(dtype, row, k, part) : rkv_row_load(dtype, row, k);
  return dtype == RKV_Q8 ? x * rkv_set1(rkv_q8_scale(row, dim)) : x;
}

/* Mean of channels [k, k + vecs * RKV_LANES), of the last `part` ones where part > 0. Members are summed in order, RKV_PIECE at a time,
 * then those sums: so the error does not grow with the whole cluster's size. A second pass adds the mean of what the first one left over:
 * the mean of equal keys is then that key to the bit, where rounding would else send equal keys from cluster to cluster. */
RKV_INLINE void mean_channels(float *to, const char *keys, size_t row_bytes, const rkv_run *run, const int32_t *members, int32_t count, int32_t k,
                              int32_t dim, int32_t vecs, int32_t part, int32_t dtype) {
  rkv_vec mean[4] = {{0}, {0}, {0}, {0}};
  for (int32_t pass = 0; pass < 2; pass++) {
    rkv_vec total[4] = {{0}, {0}, {0}, {0}};
    for (int32_t first = 0; first < count; first += RKV_PIECE) {
      const int32_t end = rkv_min_int(count, first + RKV_PIECE);
      rkv_vec sum[4] = {{0}, {0}, {0}, {0}};
      for (int32_t m = first; m < end; m++) {
        const char *row = keys + row_of(members[m], run) * row_bytes;
        RKV_UNROLL for (int32_t v = 0; v < vecs; v++) sum[v] += channels(row, dim, k + v * RKV_LANES, part, dtype) - mean[v];
      }
      RKV_UNROLL for (int32_t v = 0; v < vecs; v++) total[v] += sum[v];
    }
    RKV_UNROLL for (int32_t v = 0; v < vecs; v++) mean[v] += total[v] / rkv_set1((float)count);
  }
  RKV_UNROLL for (int32_t v = 0; v < vecs; v++)
    if (part) rkv_store_part(to + k, mean[v], part);
    else rkv_store(to + k + v * RKV_LANES, mean[v]);
}

RKV_INLINE void mean_typed(float *mean, const char *keys, size_t row_bytes, const rkv_run *run, const int32_t *members, int32_t count, int32_t dim, int32_t dtype) {
  int32_t k = 0;
  for (; k + 4 * RKV_LANES <= dim; k += 4 * RKV_LANES) mean_channels(mean, keys, row_bytes, run, members, count, k, dim, 4, 0, dtype);
  for (; k + RKV_LANES <= dim; k += RKV_LANES) mean_channels(mean, keys, row_bytes, run, members, count, k, dim, 1, 0, dtype);
  if (k < dim) mean_channels(mean, keys, row_bytes, run, members, count, k, dim, 1, dim - k, dtype);
}

static void mean_of(float *mean, const char *keys, size_t row_bytes, const rkv_run *run, const int32_t *members, int32_t count, int32_t dim, int32_t dtype) {
  switch (dtype) {
    case RKV_F16: mean_typed(mean, keys, row_bytes, run, members, count, dim, RKV_F16); break;
    case RKV_BF16: mean_typed(mean, keys, row_bytes, run, members, count, dim, RKV_BF16); break;
    case RKV_Q8: mean_typed(mean, keys, row_bytes, run, members, count, dim, RKV_Q8); break;
    default: mean_typed(mean, keys, row_bytes, run, members, count, dim, RKV_F32);
  }
}

void RKV_FN(rkv_centroid_means_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  (void)stage, (void)scratch;
  const rkv_centroid_means_args *a = args;
  const rkv_run *run = &a->run;
  const int32_t pieces = rkv_ceil_div(run->clusters, CLUSTERS), head = piece / pieces, dim = a->keys.shape[3];
  if (is_at_rest(&a->moved, run, head)) return;
  const int32_t *order = ints(&a->order, run, head), *offsets = ints(&a->offsets, run, head) + run->cluster;
  const char *keys = keys_of(&a->keys, run, head);
  float *centroids = centroids_of(&a->centroids, run, head);
  const int32_t first = piece % pieces * CLUSTERS, end = rkv_min_int(run->clusters, first + CLUSTERS);
  for (int32_t c = first; c < end; c++) {
    const int32_t from = offset_of(offsets, c, run), count = offset_of(offsets, c + 1, run) - from;
    if (count > 0) mean_of(centroids + (int64_t)c * dim, keys, rkv_row_bytes(a->keys.dtype, dim), run, order + from, count, dim, a->keys.dtype);
  }
}

/* ---- radius: CLUSTERS clusters of a head per piece -------------------------------------------------------------------------------- */

int32_t RKV_FN(rkv_radius_pieces)(const void *args, int32_t stage) {
  const rkv_radius_args *a = args;
  return stage == 0 ? a->keys.shape[1] * rkv_ceil_div(a->run.clusters, CLUSTERS) : RKV_DONE;
}

static float square_distance(const float *a, const float *b, int32_t dim) {
  rkv_vec sum = {0};
  int32_t k = 0;
  for (; k + RKV_LANES <= dim; k += RKV_LANES) {
    const rkv_vec d = rkv_load(a + k) - rkv_load(b + k);
    sum = rkv_fma(d, d, sum);
  }
  if (k < dim) {
    const rkv_vec d = rkv_load_part(a + k, dim - k) - rkv_load_part(b + k, dim - k);
    sum = rkv_fma(d, d, sum);
  }
  return rkv_sum(sum);
}

void RKV_FN(rkv_radius_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  (void)stage;
  const rkv_radius_args *a = args;
  const rkv_run *run = &a->run;
  const int32_t pieces = rkv_ceil_div(run->clusters, CLUSTERS), head = piece / pieces, dim = a->keys.shape[3];
  const size_t row_bytes = rkv_row_bytes(a->keys.dtype, dim);
  const int32_t *order = ints(&a->order, run, head), *offsets = ints(&a->offsets, run, head) + run->cluster;
  const char *keys = keys_of(&a->keys, run, head);
  const float *centroids = centroids_of(&a->centroids, run, head);
  float *radius = (float *)a->radius.data + plane(&a->radius, run, head) * a->radius.shape[2] + run->cluster, *key = scratch;
  const int32_t first = piece % pieces * CLUSTERS, end = rkv_min_int(run->clusters, first + CLUSTERS);
  for (int32_t c = first; c < end; c++) {
    float farthest = 0;
    for (int32_t m = offset_of(offsets, c, run); m < offset_of(offsets, c + 1, run); m++) {
      rkv_row_to_f32(key, keys + row_of(order[m], run) * row_bytes, a->keys.dtype, dim);
      const float square = square_distance(key, centroids + (int64_t)c * dim, dim);
      farthest = square > farthest ? square : farthest;
    }
    radius[c] = sqrtf(farthest);
  }
}
