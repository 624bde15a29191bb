/* latent.c: keys in fewer channels. A basis takes a key (or the keys of all heads of a row, side by side) to r numbers; queries taken the same
 * way rank the rows, and its transpose brings keys back. Rotations can be undone on the way, because keys have low rank only before RoPE. */
#include "cpu.h"
#include "dots.h"
#include "ranking.h"

#define LATENT_ROWS 64 /* rows per piece */

/* Row `row` of rotations: cosines, then sines; NULL where none are given. */
static const float *rotation(const rkv_view *rotations, int64_t row) {
  return rotations->data ? (const float *)rotations->data + row * 2 * rotations->shape[2] : NULL;
}

/* Undoes the rotation of pairs (j, j + half); a factor in cosines and sines is undone too. */
static void turn_back(float *x, const float *cosines, int32_t half) {
  const float *sines = cosines + half;
  for (int32_t j = 0; j < half; j++) {
    const float c = cosines[j], s = sines[j], a = x[j], b = x[j + half], square = c * c + s * s;
    x[j] = (a * c + b * s) / square;
    x[j + half] = (b * c - a * s) / square;
  }
}

static void turn(float *x, const float *cosines, int32_t half) {
  const float *sines = cosines + half;
  for (int32_t j = 0; j < half; j++) {
    const float c = cosines[j], s = sines[j], a = x[j], b = x[j + half];
    x[j] = a * c - b * s;
    x[j + half] = b * c + a * s;
  }
}

/* The plane of a basis [slots or 1, m, width, r]. */
static const float *basis_of(const rkv_view *basis, int32_t slot, int32_t row) {
  const int64_t plane = (int64_t)(basis->shape[0] == 1 ? 0 : slot) * basis->shape[1] + row;
  return (const float *)basis->data + plane * basis->shape[2] * basis->shape[3];
}

/* to[r] (+)= x[width] basis[width, r], in the order of width. */
static void project(float *to, const float *x, const float *basis, int32_t width, int32_t r, int32_t add) {
  for (int32_t k = 0; k < r; k += RKV_LANES) {
    const int32_t n = rkv_min_int(RKV_LANES, r - k);
    rkv_vec sum = add ? rkv_load_part(to + k, n) : (rkv_vec){0};
    if (n == RKV_LANES)
      for (int32_t w = 0; w < width; w++) sum = rkv_fma(rkv_set1(x[w]), rkv_load(basis + (int64_t)w * r + k), sum);
    else
      for (int32_t w = 0; w < width; w++) sum = rkv_fma(rkv_set1(x[w]), rkv_load_part(basis + (int64_t)w * r + k, n), sum);
    if (n == RKV_LANES) rkv_store(to + k, sum);
    else rkv_store_part(to + k, sum, n);
  }
}

/* ---- project_rows ---------------------------------------------------------------------------------------------------------------------- */

int32_t RKV_FN(rkv_project_rows_pieces)(const void *args, int32_t stage) {
  const rkv_project_rows_args *a = args;
  if (stage) return RKV_DONE;
  return a->latents.shape[1] * (a->slot == RKV_STEP ? a->rows->slots : rkv_ceil_div(a->count, LATENT_ROWS));
}

static void project_row(const rkv_project_rows_args *a, int32_t slot, int32_t unit, int32_t row, int32_t at, float *key) {
  const rkv_rows_data *kv = a->rows;
  const int32_t units = a->latents.shape[1], share = kv->kv_heads / units, dim = kv->head_dim, r = a->latents.shape[3];
  const float *turned = rotation(&a->rotations, at);
  float *latent = key + (int64_t)share * dim;
  for (int32_t i = 0; i < share; i++) {
    const int64_t place = ((int64_t)slot * kv->kv_heads + unit * share + i) * kv->capacity + row;
    rkv_row_to_f32(key + i * dim, (const char *)kv->keys.data + (size_t)place * rkv_row_bytes(kv->keys.dtype, dim), kv->keys.dtype, dim);
    if (turned) turn_back(key + i * dim, turned, a->rotations.shape[2]);
  }
  project(latent, key, basis_of(&a->basis, slot, unit), share * dim, r, 0);
  const int64_t place = ((int64_t)slot * units + unit) * kv->capacity + row;
  rkv_row_from_f32((char *)a->latents.data + (size_t)place * rkv_row_bytes(a->latents.dtype, r), latent, a->latents.dtype, r);
}

void RKV_FN(rkv_project_rows_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  (void)stage;
  const rkv_project_rows_args *a = args;
  const rkv_rows_data *kv = a->rows;
  const int32_t units = a->latents.shape[1], unit = piece % units, part = piece / units;
  if (a->slot == RKV_STEP) {
    if (kv->active[part] && kv->row_end[part] > 0) project_row(a, part, unit, kv->row_end[part] - 1, part, scratch);
    return;
  }
  const int32_t base = kv->row_end[a->slot] - a->count, end = rkv_min_int(a->count, (part + 1) * LATENT_ROWS);
  for (int32_t i = part * LATENT_ROWS; i < end; i++)
    if (base + i >= 0) project_row(a, a->slot, unit, base + i, i, scratch);
}

/* ---- latent_scores: a row of scores per piece --------------------------------------------------------------------------------------------- */

int32_t RKV_FN(rkv_latent_scores_pieces)(const void *args, int32_t stage) {
  const rkv_latent_scores_args *a = args;
  return stage == 0 ? a->scores.shape[0] * a->scores.shape[1] : RKV_DONE;
}

/* to[r] (+)= one head's query in the channels of the basis. */
static void project_query(const rkv_latent_scores_args *a, float *to, int32_t slot, int32_t head, float *q, int32_t add) {
  const int32_t heads = a->q.shape[1], dim = a->q.shape[2], units = a->latents.shape[1], share = a->rows->kv_heads / units;
  const int32_t kv_head = head / (heads / a->rows->kv_heads), r = a->basis.shape[3];
  const float *turned = rotation(&a->rotations, slot);
  memcpy(q, (const float *)a->q.data + ((int64_t)slot * heads + head) * dim, (size_t)dim * 4);
  if (turned) turn_back(q, turned, a->rotations.shape[2]);
  project(to, q, basis_of(&a->basis, slot, kv_head / share) + (int64_t)(kv_head % share) * dim * r, dim, r, add);
}

RKV_INLINE void dots_of_rows(float *to, const float *q, const char *rows, size_t stride, int32_t count, int32_t r, int32_t dtype) {
  for (int32_t i = 0; i < count; i += RKV_LANES) {
    const int32_t n = rkv_min_int(RKV_LANES, count - i);
    const rkv_vec dots = rkv_dots(q, rows + (size_t)i * stride, stride, n - 1, r, dtype);
    if (n == RKV_LANES) rkv_store(to + i, dots);
    else rkv_store_part(to + i, dots, n);
  }
}

static void latent_dots(const rkv_latent_scores_args *a, float *to, const float *q, int32_t slot, int32_t unit, int32_t first, int32_t count) {
  const size_t stride = rkv_row_bytes(a->latents.dtype, a->latents.shape[3]);
  const char *rows = (const char *)a->latents.data + (size_t)(((int64_t)slot * a->latents.shape[1] + unit) * a->latents.shape[2] + first) * stride;
  switch (a->latents.dtype) {
    case RKV_F16: dots_of_rows(to, q, rows, stride, count, a->basis.shape[3], RKV_F16); break;
    case RKV_BF16: dots_of_rows(to, q, rows, stride, count, a->basis.shape[3], RKV_BF16); break;
    default: dots_of_rows(to, q, rows, stride, count, a->basis.shape[3], RKV_F32);
  }
}

void RKV_FN(rkv_latent_scores_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  (void)stage;
  const rkv_latent_scores_args *a = args;
  const rkv_rows_data *kv = a->rows;
  const int32_t n = a->scores.shape[1], heads = a->q.shape[1], slot = piece / n, row = piece % n, queries = heads / n, units = a->latents.shape[1];
  if (!kv->active[slot]) return;
  float *scores = (float *)a->scores.data + (int64_t)piece * kv->capacity;
  for (int32_t i = 0; i < kv->capacity; i++) scores[i] = -INFINITY;
  const int32_t first = a->sink, count = rkv_min_int(kv->tail_begin[slot], kv->row_end[slot]) - first;
  if (count <= 0) return;
  const int32_t unit = row * queries / (heads / units), is_shared = units < kv->kv_heads;
  float *q = scratch, *latent = q + rkv_ceil_div(a->q.shape[2], RKV_LANES) * RKV_LANES, *logits = latent + rkv_ceil_div(a->basis.shape[3], RKV_LANES) * RKV_LANES;
  if (is_shared || n != kv->kv_heads) { /* one query: the head's, or the sum over the heads */
    for (int32_t g = 0; g < queries; g++) project_query(a, latent, slot, row * queries + g, q, g > 0);
    latent_dots(a, scores + first, latent, slot, unit, first, count);
    return;
  }
  for (int32_t g = 0; g < queries; g++) {
    project_query(a, latent, slot, row * queries + g, q, 0);
    latent_dots(a, logits, latent, slot, unit, first, count);
    for (int32_t i = 0; i < count; i++) logits[i] = logits[i] == logits[i] ? logits[i] : -INFINITY;
    for (int32_t i = count; i % RKV_LANES; i++) logits[i] = -INFINITY;
    rkv_add_softmax(scores + first, logits, count, a->scale, g > 0);
  }
}

/* ---- trim_index: a slot per piece ---------------------------------------------------------------------------------------------------------- */

int32_t RKV_FN(rkv_trim_index_pieces)(const void *args, int32_t stage) {
  const rkv_trim_index_args *a = args;
  return stage == 0 ? a->index.shape[0] : RKV_DONE;
}

void RKV_FN(rkv_trim_index_run)(const void *args, int32_t stage, int32_t slot, void *scratch) {
  (void)stage, (void)scratch;
  const rkv_trim_index_args *a = args;
  const int32_t n = a->index.shape[1], budget = a->index.shape[2], width = a->scores.shape[2];
  if (!((const int32_t *)a->active.data)[slot]) return;
  int32_t *index = (int32_t *)a->index.data + (int64_t)slot * n * budget;
  int64_t near = 0;
  for (int32_t h = 0; h < n; h++) {
    const float *scores = (const float *)a->scores.data + ((int64_t)slot * n + h) * width;
    const int32_t *rows = index + (int64_t)h * budget;
    for (int32_t i = 0; i < budget && (uint32_t)rows[i] < (uint32_t)width && scores[rows[i]] > scores[rows[0]] - a->alpha; i++) near++;
  }
  const int32_t count = (int32_t)((near + n / 2) / n);
  for (int32_t h = 0; h < n; h++)
    if (count < budget) memset(index + (int64_t)h * budget + count, 0xff, (size_t)(budget - count) * 4);
}

/* ---- reconstruct: LATENT_ROWS chosen rows per piece ------------------------------------------------------------------------------------------ */

int32_t RKV_FN(rkv_reconstruct_pieces)(const void *args, int32_t stage) {
  const rkv_reconstruct_args *a = args;
  return stage == 0 ? a->index.shape[0] * a->index.shape[1] * rkv_ceil_div(a->index.shape[2], LATENT_ROWS) : RKV_DONE;
}

void RKV_FN(rkv_reconstruct_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  (void)stage;
  const rkv_reconstruct_args *a = args;
  const rkv_rows_data *kv = a->rows;
  const int32_t units = a->index.shape[1], budget = a->index.shape[2], pieces = rkv_ceil_div(budget, LATENT_ROWS), slot = piece / pieces / units;
  const int32_t unit = piece / pieces % units, share = kv->kv_heads / units, dim = kv->head_dim, width = share * dim, r = a->latents.shape[3];
  if (!kv->active[slot]) return;
  const int32_t *index = (const int32_t *)a->index.data + ((int64_t)slot * units + unit) * budget;
  const size_t bytes = rkv_row_bytes(a->latents.dtype, r);
  const char *latents = (const char *)a->latents.data + (size_t)(((int64_t)slot * units + unit) * kv->capacity) * bytes;
  const float *basis = basis_of(&a->basis, slot, unit);
  float *latent = scratch, *key = latent + rkv_ceil_div(r, RKV_LANES) * RKV_LANES;
  const int32_t end = rkv_min_int(budget, (piece % pieces + 1) * LATENT_ROWS);
  for (int32_t i = piece % pieces * LATENT_ROWS; i < end; i++) {
    const int32_t row = index[i], is_row = row >= 0 && row < kv->row_end[slot];
    if (is_row) {
      rkv_row_to_f32(latent, latents + (size_t)row * bytes, a->latents.dtype, r);
      dots_of_rows(key, latent, (const char *)basis, (size_t)r * 4, width, r, RKV_F32);
    }
    for (int32_t h = 0; h < share; h++) {
      const int64_t plane = (int64_t)slot * kv->kv_heads + unit * share + h;
      float *to = (float *)a->keys.data + (plane * budget + i) * dim;
      if (!is_row) {
        memset(to, 0, (size_t)dim * 4);
        continue;
      }
      const int32_t position = kv->position[plane * kv->capacity + row];
      memcpy(to, key + h * dim, (size_t)dim * 4);
      if (a->rotations.data && position >= 0 && position < a->rotations.shape[0]) turn(to, rotation(&a->rotations, position), a->rotations.shape[2]);
    }
  }
}

/* ---- channel_mass, pick_channels: a KV head per piece ----------------------------------------------------------------------------------------- */

int32_t RKV_FN(rkv_channel_mass_pieces)(const void *args, int32_t stage) {
  const rkv_channel_mass_args *a = args;
  return stage == 0 ? a->mass.shape[1] : RKV_DONE;
}

void RKV_FN(rkv_channel_mass_run)(const void *args, int32_t stage, int32_t head, void *scratch) {
  (void)stage;
  const rkv_channel_mass_args *a = args;
  const int32_t kv_heads = a->mass.shape[1], width = a->mass.shape[2], heads = a->q.shape[1], dim = a->q.shape[2], group = heads / kv_heads;
  float *mass = (float *)a->mass.data + ((int64_t)a->slot * kv_heads + head) * width, *x = scratch;
  const float *basis = basis_of(&a->basis, a->slot, head);
  for (int32_t i = 0; i < a->count * group; i++) {
    project(x, (const float *)a->q.data + ((int64_t)(i / group) * heads + head * group + i % group) * dim, basis, dim, width, 0);
    for (int32_t c = 0; c < width; c++) mass[c] += __builtin_fabsf(x[c]);
  }
}

int32_t RKV_FN(rkv_pick_channels_pieces)(const void *args, int32_t stage) {
  const rkv_pick_channels_args *a = args;
  return stage == 0 ? a->to.shape[1] : RKV_DONE;
}

void RKV_FN(rkv_pick_channels_run)(const void *args, int32_t stage, int32_t head, void *scratch) {
  (void)stage, (void)scratch;
  const rkv_pick_channels_args *a = args;
  const int32_t width = a->to.shape[2], r = a->to.shape[3], all = a->basis.shape[3];
  const int64_t plane = (int64_t)a->slot * a->to.shape[1] + head;
  const float *basis = basis_of(&a->basis, a->slot, head);
  const int32_t *order = (const int32_t *)a->order.data + plane * r;
  float *to = (float *)a->to.data + plane * width * r;
  for (int32_t w = 0; w < width; w++)
    for (int32_t c = 0; c < r; c++) to[(int64_t)w * r + c] = (uint32_t)order[c] < (uint32_t)all ? basis[(int64_t)w * all + order[c]] : 0;
}
