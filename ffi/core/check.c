/* check.c: the checks that ops share (check.h). */
#include <stdio.h>
#include <string.h>
#include "check.h"

static const char *const dtype_names[] = {"f32", "f16", "bf16", "i32", "u32", "q8"};

static void refuse(rkv_check *c, int32_t code) {
  if (c->code == 0) c->code = code;
}

/* A tape remembers whose memory its ops use. */
static void note_arena(rkv_check *c, rkv_tape *tape, int32_t arena) {
  for (int32_t i = 0; i < tape->arena_count; i++) {
    if (tape->arenas[i] == arena) return;
  }
  const int32_t most = (int32_t)(sizeof tape->arenas / sizeof *tape->arenas);
  if (tape->arena_count < most) tape->arenas[tape->arena_count++] = arena;
  else refuse(c, rkv_refuse(RKV_LIMIT, "Cannot %s: the recorded step uses more than %d arenas", c->action, most));
}

/* Takes part in the op: the first object's arena gives the queue, all others must be of the same device. */
void rkv_check_arena(rkv_check *c, rkv_arena_object *arena, const char *name) {
  if (c->code != 0) return;
  if (c->arena == NULL) c->arena = arena;
  if (arena->device != c->arena->device) refuse(c, rkv_refuse(RKV_DEVICE, "Cannot %s: %s is of another device", c->action, name));
  else if (c->bundles && arena != c->arena) refuse(c, rkv_refuse(RKV_RANGE, "Cannot %s: %s is of another arena, want the one that holds the bundle", c->action, name));
  else if (!c->bundles && c->arena->recording != NULL) note_arena(c, c->arena->recording, arena->handle);
}

static void *object_of(rkv_check *c, int32_t handle, rkv_kind kind, const char *name) {
  if (c->code != 0) return NULL;
  void *object = rkv_handle_get(handle, kind, c->action, name);
  if (object == NULL) refuse(c, RKV_STALE);
  else rkv_check_arena(c, ((rkv_object *)object)->arena, name);
  return object;
}

void rkv_check_tensor(rkv_check *c, rkv_view *view, int32_t handle, const char *name, unsigned dtypes) {
  rkv_tensor_object *tensor = object_of(c, handle, KIND_TENSOR, name);
  if (tensor == NULL || c->code != 0) return;
  *view = tensor->view;
  if (dtypes & ONE_OF(view->dtype)) return;
  char wanted[64] = "";
  for (int32_t i = 0; i <= RKV_Q8; i++) {
    if (!(dtypes & ONE_OF(i))) continue;
    if (wanted[0]) strcat(wanted, ", ");
    strcat(wanted, dtype_names[i]);
  }
  refuse(c, rkv_refuse(RKV_DTYPE, "Cannot %s: %s is %s, want %s", c->action, name, dtype_names[view->dtype], wanted));
}

void rkv_check_optional(rkv_check *c, rkv_view *view, int32_t handle, const char *name, unsigned dtypes) {
  *view = (rkv_view){0};
  if (handle != 0) rkv_check_tensor(c, view, handle, name, dtypes);
}

void rkv_check_shape(rkv_check *c, const rkv_view *view, const char *name, int32_t rank, const int64_t *extents) {
  if (c->code != 0 || view->data == NULL) return;
  bool fits = view->rank == rank;
  for (int32_t i = 0; i < rank && fits; i++) {
    fits = extents[i] == ANY || (extents[i] < 0 ? view->shape[i] >= -2 - extents[i] : view->shape[i] == extents[i]);
  }
  if (fits) return;
  char found[96] = "", wanted[160] = "";
  size_t f = 0, w = 0;
  for (int32_t i = 0; i < view->rank; i++) f += (size_t)snprintf(found + f, sizeof found - f, "%s%d", i ? ", " : "", view->shape[i]);
  for (int32_t i = 0; i < rank; i++) {
    const char *comma = i ? ", " : "";
    if (extents[i] == ANY) w += (size_t)snprintf(wanted + w, sizeof wanted - w, "%sany", comma);
    else if (extents[i] < 0) w += (size_t)snprintf(wanted + w, sizeof wanted - w, "%sat least %lld", comma, (long long)(-2 - extents[i]));
    else w += (size_t)snprintf(wanted + w, sizeof wanted - w, "%s%lld", comma, (long long)extents[i]);
  }
  refuse(c, rkv_refuse(RKV_SHAPE, "Cannot %s: %s is [%s], want [%s]", c->action, name, found, wanted));
}

const rkv_layer_data *rkv_check_layer(rkv_check *c, int32_t handle) {
  rkv_layer_object *layer = object_of(c, handle, KIND_LAYER, "layer");
  return layer == NULL ? NULL : &layer->data;
}

void rkv_check_weights(rkv_check *c, const rkv_layer_data *layer) {
  if (c->code == 0 && layer->attn_norm == NULL) refuse(c, rkv_refuse(RKV_SHAPE, "Cannot %s: layer was made without weights, want those of a model", c->action));
}

const rkv_model_data *rkv_check_model(rkv_check *c, int32_t handle) {
  rkv_model_object *model = object_of(c, handle, KIND_MODEL, "model");
  return model == NULL ? NULL : &model->data;
}

const rkv_rows_data *rkv_check_rows(rkv_check *c, int32_t handle) {
  rkv_rows_object *rows = object_of(c, handle, KIND_ROWS, "rows");
  return rows == NULL ? NULL : &rows->data;
}

void rkv_check_range(rkv_check *c, const char *name, int64_t value, int64_t least, int64_t most) {
  if (c->code != 0 || (value >= least && value <= most)) return;
  refuse(c, rkv_refuse(RKV_RANGE, "Cannot %s: %s is %lld, want %lld to %lld", c->action, name, (long long)value, (long long)least, (long long)most));
}

void rkv_check_equal(rkv_check *c, const char *name, int64_t value, const char *wanted_name, int64_t wanted) {
  if (c->code != 0 || value == wanted) return;
  refuse(c, rkv_refuse(RKV_SHAPE, "Cannot %s: %s is %lld but %s is %lld", c->action, name, (long long)value, wanted_name, (long long)wanted));
}

void rkv_check_work(rkv_check *c, const rkv_view *view, int64_t floats) {
  if (c->code != 0) return;
  int64_t elements = 1;
  for (int32_t i = 0; i < view->rank; i++) elements *= view->shape[i];
  if (elements < floats) {
    refuse(c, rkv_refuse(RKV_SHAPE, "Cannot %s: work has %lld floats, want at least %lld", c->action, (long long)elements, (long long)floats));
  }
}

rkv_run rkv_check_run(rkv_check *c, const int32_t *run, int32_t slots, int32_t capacity, int32_t max_clusters) {
  rkv_run r = {run[0], run[1], run[2], run[3], run[4]};
  if (c->code == 0 && c->arena->recording != NULL) {
    refuse(c, rkv_refuse(RKV_RECORDING, "Cannot %s: a step is being recorded, want it before or after", c->action));
  }
  rkv_check_range(c, "run.slot", r.slot, 0, slots - 1);
  rkv_check_range(c, "run.begin", r.begin, 0, capacity);
  rkv_check_range(c, "run.rows", r.rows, 1, (int64_t)capacity - r.begin);
  rkv_check_range(c, "run.cluster", r.cluster, 0, max_clusters);
  rkv_check_range(c, "run.clusters", r.clusters, 1, (int64_t)max_clusters - r.cluster);
  return r;
}
