/* check_latent.c: what the ops over keys in fewer channels want of their arguments (recallkv.h is the manual). */
#include "check.h"

/* A row of channels, and what it is made of, lie in scratch twice. */
#define LATENT_WIDTH (RKV_SCRATCH / 16)
#define LATENT_DTYPES (ONE_OF(RKV_F32) | ONE_OF(RKV_F16) | ONE_OF(RKV_BF16))

/* [slots, kvHeads or 1, capacity, r]; returns the second extent. */
static int32_t check_latents(rkv_check *c, const rkv_view *latents, const rkv_rows_data *rows) {
  int32_t shared = latents->rank == 4 && latents->shape[1] == 1;
  SHAPE(c, latents, "latents", rows->slots, shared ? 1 : rows->kv_heads, rows->capacity, LEAST(1));
  return shared ? 1 : rows->kv_heads;
}

/* [slots or 1, units, width, channels]: one for all slots, or one for each. */
static void check_basis(rkv_check *c, const rkv_view *basis, int32_t slots, int64_t units, int64_t width, int64_t channels) {
  if (c->code != 0) return;
  int32_t shared = basis->rank == 4 && basis->shape[0] == 1;
  SHAPE(c, basis, "basis", shared ? 1 : slots, units, width, channels);
  rkv_check_range(c, "width of the basis", basis->rank == 4 ? basis->shape[2] : 1, 1, LATENT_WIDTH);
  rkv_check_range(c, "channels of the basis", basis->rank == 4 ? basis->shape[3] : 1, 1, LATENT_WIDTH);
}

/* [n, 2, ropeDim / 2] */
static void check_rotations(rkv_check *c, const rkv_view *rotations, int64_t least, int32_t dim) {
  SHAPE(c, rotations, "rotations", LEAST(least), 2, ANY);
  if (c->code == 0 && rotations->data != NULL) rkv_check_range(c, "ropeDim", 2 * (int64_t)rotations->shape[2], 0, dim);
}

int32_t rkv_project_rows(int32_t latents, int32_t rows, int32_t rotations, int32_t basis, int32_t slot, int32_t count) {
  rkv_check c = {.action = "project rows"};
  rkv_project_rows_args a = {.slot = slot, .count = count};
  rkv_check_tensor(&c, &a.latents, latents, "latents", LATENT_DTYPES);
  a.rows = rkv_check_rows(&c, rows);
  rkv_check_optional(&c, &a.rotations, rotations, "rotations", F32_ONLY);
  rkv_check_tensor(&c, &a.basis, basis, "basis", F32_ONLY);
  if (c.code == 0) {
    int32_t units = check_latents(&c, &a.latents, a.rows);
    rkv_check_range(&c, "slot", slot, RKV_STEP, a.rows->slots - 1);
    if (slot == RKV_STEP) rkv_check_equal(&c, "count of a step", count, "slots", a.rows->slots);
    else rkv_check_range(&c, "count", count, 1, a.rows->capacity);
    check_rotations(&c, &a.rotations, count, a.rows->head_dim);
    if (c.code == 0) check_basis(&c, &a.basis, a.rows->slots, units, (int64_t)(a.rows->kv_heads / units) * a.rows->head_dim, a.latents.shape[3]);
  }
  return rkv_submit(&c, RKV_OP_project_rows, &a, sizeof a);
}

int32_t rkv_latent_scores(int32_t scores, int32_t q, int32_t latents, int32_t basis, int32_t rotations, int32_t rows, float scale, int32_t sink) {
  rkv_check c = {.action = "score latents"};
  rkv_latent_scores_args a = {.scale = scale, .sink = sink};
  rkv_check_tensor(&c, &a.scores, scores, "scores", F32_ONLY);
  rkv_check_tensor(&c, &a.q, q, "q", F32_ONLY);
  rkv_check_tensor(&c, &a.latents, latents, "latents", LATENT_DTYPES);
  rkv_check_tensor(&c, &a.basis, basis, "basis", F32_ONLY);
  rkv_check_optional(&c, &a.rotations, rotations, "rotations", F32_ONLY);
  a.rows = rkv_check_rows(&c, rows);
  if (c.code == 0) {
    const rkv_rows_data *kv = a.rows;
    int32_t units = check_latents(&c, &a.latents, kv);
    SHAPE(&c, &a.q, "q", kv->slots, LEAST(kv->kv_heads), kv->head_dim);
    if (c.code == 0) rkv_check_equal(&c, "heads of q beyond whole groups", a.q.shape[1] % kv->kv_heads, "nothing", 0);
    check_basis(&c, &a.basis, kv->slots, units, (int64_t)(kv->kv_heads / units) * kv->head_dim, ANY);
    if (c.code == 0) rkv_check_range(&c, "channels of the basis", a.basis.shape[3], 1, a.latents.shape[3]);
    check_rotations(&c, &a.rotations, kv->slots, kv->head_dim);
    rkv_check_range(&c, "sink", sink, 0, kv->capacity);
    rkv_check_range(&c, "capacity", kv->capacity, 0, RKV_SCRATCH / 8);
    if (c.code == 0) {
      int32_t per_head = a.scores.rank == 3 && a.scores.shape[1] == a.q.shape[1];
      SHAPE(&c, &a.scores, "scores", kv->slots, units < kv->kv_heads ? 1 : per_head ? a.q.shape[1] : kv->kv_heads, kv->capacity);
    }
  }
  return rkv_submit(&c, RKV_OP_latent_scores, &a, sizeof a);
}

int32_t rkv_trim_index(int32_t index, int32_t scores, int32_t active, float alpha) {
  rkv_check c = {.action = "trim the index"};
  rkv_trim_index_args a = {.alpha = alpha};
  rkv_check_tensor(&c, &a.index, index, "index", I32_ONLY);
  rkv_check_tensor(&c, &a.scores, scores, "scores", F32_ONLY);
  rkv_check_tensor(&c, &a.active, active, "active", I32_ONLY);
  SHAPE(&c, &a.index, "index", ANY, LEAST(1), ANY);
  if (c.code == 0) {
    SHAPE(&c, &a.scores, "scores", a.index.shape[0], a.index.shape[1], ANY);
    SHAPE(&c, &a.active, "active", a.index.shape[0]);
  }
  return rkv_submit(&c, RKV_OP_trim_index, &a, sizeof a);
}

int32_t rkv_reconstruct(int32_t keys, int32_t latents, int32_t basis, int32_t index, int32_t rotations, int32_t rows) {
  rkv_check c = {.action = "reconstruct keys"};
  rkv_reconstruct_args a;
  rkv_check_tensor(&c, &a.keys, keys, "keys", F32_ONLY);
  rkv_check_tensor(&c, &a.latents, latents, "latents", LATENT_DTYPES);
  rkv_check_tensor(&c, &a.basis, basis, "basis", F32_ONLY);
  rkv_check_tensor(&c, &a.index, index, "index", I32_ONLY);
  rkv_check_optional(&c, &a.rotations, rotations, "rotations", F32_ONLY);
  a.rows = rkv_check_rows(&c, rows);
  if (c.code == 0) {
    const rkv_rows_data *kv = a.rows;
    int32_t units = check_latents(&c, &a.latents, kv);
    SHAPE(&c, &a.index, "index", kv->slots, units, ANY);
    if (c.code == 0) {
      SHAPE(&c, &a.keys, "keys", kv->slots, kv->kv_heads, a.index.shape[2], kv->head_dim);
      check_basis(&c, &a.basis, kv->slots, units, (int64_t)(kv->kv_heads / units) * kv->head_dim, a.latents.shape[3]);
      check_rotations(&c, &a.rotations, 1, kv->head_dim);
    }
  }
  return rkv_submit(&c, RKV_OP_reconstruct, &a, sizeof a);
}

int32_t rkv_channel_mass(int32_t mass, int32_t q, int32_t basis, int32_t slot, int32_t count) {
  rkv_check c = {.action = "add up channels"};
  rkv_channel_mass_args a = {.slot = slot, .count = count};
  rkv_check_tensor(&c, &a.mass, mass, "mass", F32_ONLY);
  rkv_check_tensor(&c, &a.q, q, "q", F32_ONLY);
  rkv_check_tensor(&c, &a.basis, basis, "basis", F32_ONLY);
  rkv_check_range(&c, "count", count, 1, INT32_MAX);
  SHAPE(&c, &a.mass, "mass", ANY, LEAST(1), LEAST(1));
  if (c.code == 0) {
    rkv_check_range(&c, "slot", slot, 0, a.mass.shape[0] - 1);
    SHAPE(&c, &a.q, "q", LEAST(count), LEAST(a.mass.shape[1]), LEAST(1));
    if (c.code == 0) rkv_check_equal(&c, "heads of q beyond whole groups", a.q.shape[1] % a.mass.shape[1], "nothing", 0);
    if (c.code == 0) check_basis(&c, &a.basis, a.mass.shape[0], a.mass.shape[1], a.q.shape[2], a.mass.shape[2]);
  }
  return rkv_submit(&c, RKV_OP_channel_mass, &a, sizeof a);
}

int32_t rkv_pick_channels(int32_t to, int32_t basis, int32_t order, int32_t slot) {
  rkv_check c = {.action = "pick channels"};
  rkv_pick_channels_args a = {.slot = slot};
  rkv_check_tensor(&c, &a.to, to, "to", F32_ONLY);
  rkv_check_tensor(&c, &a.basis, basis, "basis", F32_ONLY);
  rkv_check_tensor(&c, &a.order, order, "order", I32_ONLY);
  SHAPE(&c, &a.to, "to", ANY, LEAST(1), LEAST(1), LEAST(1));
  if (c.code == 0) {
    const int32_t *s = a.to.shape;
    check_basis(&c, &a.basis, s[0], s[1], s[2], LEAST(1));
    SHAPE(&c, &a.order, "order", s[0], s[1], s[3]);
    rkv_check_range(&c, "slot", slot, 0, s[0] - 1);
  }
  return rkv_submit(&c, RKV_OP_pick_channels, &a, sizeof a);
}
