/* weights.c: mapped files, packed weights, and the bundles that ops take: layers, models, rows. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "check.h"

/* ---- files ---- */

int32_t rkv_file(const uint8_t *path, uint32_t bytes) {
  char name[4096];
  if (bytes >= sizeof name) return rkv_refuse(RKV_FILE, "Cannot map a file: its path has %u bytes, want fewer than %llu", bytes, (unsigned long long)sizeof name);
  memcpy(name, path, bytes);
  name[bytes] = 0;
  rkv_file_object *file = calloc(1, sizeof *file);
  if (file == NULL) return rkv_refuse(RKV_MEMORY, "Cannot map \"%s\": the process is out of memory", name);
  file->bytes = rkv_os_map(name, &file->size);
  if (file->bytes == NULL) {
    int error = errno;
    free(file);
    return rkv_refuse(RKV_FILE, "Cannot map \"%s\": %s", name, error == EINVAL ? "it is empty or no regular file" : strerror(error));
  }
  const char *base = strrchr(name, '/');
  snprintf(file->name, sizeof file->name, "%s", base ? base + 1 : name);
  int32_t handle = rkv_handle_new(KIND_FILE, file);
  if (handle < 0) rkv_file_close(file);
  return handle;
}

void rkv_file_close(rkv_file_object *file) {
  rkv_os_unmap(file->bytes, file->size);
  free(file);
}

/* ---- weights ---- */

/* Bytes of a row of `cols` weights in a file, or 0 when the row is no whole number of blocks. */
static size_t file_row_bytes(int32_t type, int32_t cols) {
  static const struct { int32_t weights, bytes; } blocks[] = {{1, 4}, {1, 2}, {1, 2}, {32, 34}, {32, 18}, {256, 144}, {256, 176}, {256, 210}, {32, 20}, {32, 22}, {32, 24}};
  if (cols % blocks[type].weights != 0) return 0;
  return (size_t)(cols / blocks[type].weights) * (size_t)blocks[type].bytes;
}

#define AROUND (64 << 10) /* what the system maps around a page that is touched: a tensor's reading brings ends of its neighbours with it */

static const char *const type_names[] = {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q4_1", "Q5_0", "Q5_1"};

int32_t rkv_weight(int32_t arena_handle, int32_t file_handle, int64_t offset, int32_t type, int32_t rows, int32_t cols, int32_t rotated) {
  static const char *action = "load a weight";
  rkv_arena_object *arena = rkv_handle_get(arena_handle, KIND_ARENA, action, "arena");
  rkv_file_object *file = arena == NULL ? NULL : rkv_handle_get(file_handle, KIND_FILE, action, "file");
  if (file == NULL) return RKV_STALE;
  if (rkv_refuse_recording(arena, action) != 0) return RKV_RECORDING;
  rkv_device *d = arena->device;
  if (file->closer != NULL && file->closer != d) return rkv_refuse(RKV_DEVICE, "Cannot %s: \"%s\" is read by another device", action, file->name);
  if (type < 0 || type >= RKV_WEIGHT_TYPES) return rkv_refuse(RKV_DTYPE, "Cannot %s: type is %d, want 0 to %d", action, type, RKV_WEIGHT_TYPES - 1);
  if (rows < 1 || cols < 1) return rkv_refuse(RKV_RANGE, "Cannot %s: it is [%d, %d], want at least [1, 1]", action, rows, cols);
  if (rotated < 0 || (rotated > 0 && (rows == 1 ? cols : rows) % (2 * (int64_t)rotated) != 0)) {
    return rkv_refuse(RKV_RANGE, "Cannot %s: %d rows are no whole number of pairs for %d heads", action, rows == 1 ? cols : rows, rotated);
  }
  size_t row_bytes = file_row_bytes(type, cols), size = row_bytes * (size_t)rows;
  size_t packed = d->backend->packed_bytes(d->state, type, rows, cols);
  if (row_bytes == 0 || packed == 0) {
    return rkv_refuse(RKV_DTYPE, "Cannot %s: %s rows of %d weights are not supported by this device", action, type_names[type], cols);
  }
  if (offset < 0 || (uint64_t)offset > file->size || size > file->size - (uint64_t)offset) {
    return rkv_refuse(RKV_FILE, "Cannot %s: its %llu bytes from byte %lld on end past \"%s\", which has %llu", action, (unsigned long long)size, (long long)offset, file->name,
                      (unsigned long long)file->size);
  }
  rkv_weight_object *weight = calloc(1, sizeof *weight);
  if (weight == NULL) return rkv_refuse(RKV_MEMORY, "Cannot %s: the process is out of memory", action);
  if (rkv_queue_entry(d, RKV_KEPT, action) == NULL) {
    free(weight);
    return RKV_LIMIT;
  }
  void *memory = rkv_arena_take(arena, packed, true, action);
  if (memory == NULL) {
    free(weight);
    return RKV_MEMORY;
  }
  if (d->backend->remote == NULL) rkv_os_use_whole(memory, packed);
  weight->data = (rkv_weight_data){.packed = memory, .bytes = packed, .type = type, .rows = rows, .cols = cols};
  int32_t handle = rkv_arena_own(arena, &weight->object, NULL, KIND_WEIGHT);
  if (handle < 0) return handle;
  if (file->closer == NULL) {
    file->closer = d;
    atomic_fetch_add(&d->users, 1);
  }
  rkv_check c = {.action = action, .arena = arena};
  rkv_pack_args a = {.weight = &weight->data, .source = file->bytes + offset, .rotated = rotated};
  rkv_submit(&c, RKV_OP_pack, &a, sizeof a);
  const size_t first = (size_t)offset / AROUND * AROUND, end = ((size_t)offset + size + AROUND - 1) / AROUND * AROUND;
  rkv_entry *entry = rkv_queue_entry(d, 0, action); /* the mapped pages have been read: weights are resident once */
  *entry = (rkv_entry){.kind = ENTRY_DISCARD, .arena = arena};
  entry->as.release.begin = (void *)(uintptr_t)(file->bytes + first);
  entry->as.release.bytes = (end < file->size ? end : file->size) - first;
  rkv_queue_give(d);
  return handle;
}

/* ---- bundles ---- */

static const rkv_weight_data *weight_of(rkv_check *c, int32_t handle, const char *name, int32_t rows, int32_t cols) {
  if (c->code != 0 || handle == 0) return NULL;
  rkv_weight_object *weight = rkv_handle_get(handle, KIND_WEIGHT, c->action, name);
  if (weight == NULL) {
    c->code = RKV_STALE;
    return NULL;
  }
  rkv_check_arena(c, weight->object.arena, name);
  const rkv_weight_data *d = &weight->data;
  if (c->code == 0 && ((rows > 0 && d->rows != rows) || (cols > 0 && d->cols != cols))) {
    c->code = rkv_refuse(RKV_SHAPE, "Cannot %s: %s is [%d, %d], want [%d, %d]", c->action, name, d->rows, d->cols, rows > 0 ? rows : d->rows, cols > 0 ? cols : d->cols);
  }
  return d;
}

static void need(rkv_check *c, const rkv_weight_data *weight, const char *name) {
  if (c->code == 0 && weight == NULL) c->code = rkv_refuse(RKV_STALE, "Cannot %s: there is no %s, want it", c->action, name);
}

static void take_weights(rkv_check *c, rkv_layer_data *d, const int32_t *weights) {
  d->attn_norm = weight_of(c, weights[0], "attnNorm", 1, 0);
  need(c, d->attn_norm, "attnNorm");
  d->hidden = c->code == 0 ? d->attn_norm->cols : 0;
  d->q = weight_of(c, weights[1], "q", d->heads * d->head_dim, d->hidden);
  d->k = weight_of(c, weights[2], "k", d->kv_heads * d->head_dim, d->hidden);
  d->v = weight_of(c, weights[3], "v", d->kv_heads * d->head_dim, d->hidden);
  d->o = weight_of(c, weights[4], "o", d->hidden, d->heads * d->head_dim);
  d->q_bias = weight_of(c, weights[5], "qBias", 1, d->heads * d->head_dim);
  d->k_bias = weight_of(c, weights[6], "kBias", 1, d->kv_heads * d->head_dim);
  d->v_bias = weight_of(c, weights[7], "vBias", 1, d->kv_heads * d->head_dim);
  d->o_bias = weight_of(c, weights[8], "oBias", 1, d->hidden);
  d->q_norm = weight_of(c, weights[9], "qNorm", 1, d->head_dim);
  d->k_norm = weight_of(c, weights[10], "kNorm", 1, d->head_dim);
  d->ffn_norm = weight_of(c, weights[11], "ffnNorm", 1, d->hidden);
  d->gate = weight_of(c, weights[12], "gate", 0, d->hidden);
  need(c, d->gate, "gate");
  d->intermediate = c->code == 0 ? d->gate->rows : 0;
  d->up = weight_of(c, weights[13], "up", d->intermediate, d->hidden);
  d->down = weight_of(c, weights[14], "down", d->hidden, d->intermediate);
  const struct { const rkv_weight_data *weight; const char *name; } needed[] = {{d->q, "q"}, {d->k, "k"}, {d->v, "v"}, {d->o, "o"},
                                                                               {d->ffn_norm, "ffnNorm"}, {d->up, "up"}, {d->down, "down"}};
  for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) need(c, needed[i].weight, needed[i].name);
}

int32_t rkv_layer(int32_t arena, const int32_t *weights, const int32_t *sizes, const double *numbers) {
  rkv_check c = {.action = "make a layer", .bundles = true};
  c.arena = rkv_handle_get(arena, KIND_ARENA, c.action, "arena");
  if (c.arena == NULL) return RKV_STALE;
  int32_t heads = sizes[0], kv_heads = sizes[1], dim = sizes[2];
  rkv_check_range(&c, "kvHeads", kv_heads, 1, 1 << 16);
  rkv_check_range(&c, "heads", heads, kv_heads, 1 << 16);
  if (c.code == 0) rkv_check_equal(&c, "heads beyond whole groups", heads % kv_heads, "nothing", 0);
  rkv_check_range(&c, "headDim", dim, 1, RKV_HEAD_DIM);
  rkv_check_range(&c, "window", sizes[3], 0, INT32_MAX);
  rkv_check_range(&c, "ropeDim", sizes[4], 0, dim);
  rkv_check_range(&c, "ropeDim beyond whole pairs", sizes[4] % 2, 0, 0);
  if (c.code != 0) return c.code;
  rkv_layer_data d = {.heads = heads, .kv_heads = kv_heads, .head_dim = dim, .window = sizes[3], .rope_dim = sizes[4],
                      .eps = (float)numbers[0], .scale = (float)numbers[1], .soft_cap = (float)numbers[2]};
  bool has_weights = false;
  for (int32_t i = 0; i < 15; i++) has_weights |= weights[i] != 0;
  if (has_weights) take_weights(&c, &d, weights);
  if (c.code != 0) return c.code;
  rkv_layer_object *layer = calloc(1, sizeof *layer);
  if (layer == NULL) return rkv_refuse(RKV_MEMORY, "Cannot %s: the process is out of memory", c.action);
  layer->data = d;
  return rkv_arena_own(c.arena, &layer->object, NULL, KIND_LAYER);
}

int32_t rkv_model(int32_t arena, int32_t embed, int32_t output_norm, int32_t output, double eps) {
  rkv_check c = {.action = "make a model", .bundles = true};
  c.arena = rkv_handle_get(arena, KIND_ARENA, c.action, "arena");
  if (c.arena == NULL) return RKV_STALE;
  rkv_model_data d = {.eps = (float)eps};
  d.embed = weight_of(&c, embed, "embed", 0, 0);
  need(&c, d.embed, "embed");
  if (c.code != 0) return c.code;
  d.vocab = d.embed->rows;
  d.hidden = d.embed->cols;
  d.output_norm = weight_of(&c, output_norm, "outputNorm", 1, d.hidden);
  need(&c, d.output_norm, "outputNorm");
  d.output = output == 0 ? d.embed : weight_of(&c, output, "output", d.vocab, d.hidden);
  if (c.code != 0) return c.code;
  rkv_model_object *model = calloc(1, sizeof *model);
  if (model == NULL) return rkv_refuse(RKV_MEMORY, "Cannot %s: the process is out of memory", c.action);
  model->data = d;
  return rkv_arena_own(c.arena, &model->object, NULL, KIND_MODEL);
}

int32_t rkv_rows(int32_t arena, const int32_t *tensors, int32_t layer) {
  rkv_check c = {.action = "make rows", .bundles = true};
  rkv_arena_object *owner = rkv_handle_get(arena, KIND_ARENA, c.action, "arena");
  if (owner == NULL) return RKV_STALE;
  c.arena = owner;
  rkv_rows_data d = {0};
  rkv_view position, row_end, tail_begin, active, attended;
  rkv_check_tensor(&c, &d.keys, tensors[0], "keys", ROW_DTYPES);
  if (c.code == 0) rkv_check_tensor(&c, &d.values, tensors[1], "values", ONE_OF(d.keys.dtype));
  rkv_check_tensor(&c, &position, tensors[2], "rowPosition", I32_ONLY);
  rkv_check_tensor(&c, &row_end, tensors[3], "rowEnd", I32_ONLY);
  rkv_check_tensor(&c, &tail_begin, tensors[4], "tailBegin", I32_ONLY);
  rkv_check_tensor(&c, &active, tensors[5], "active", I32_ONLY);
  rkv_check_tensor(&c, &attended, tensors[6], "attended", I32_ONLY);
  SHAPE(&c, &d.keys, "keys", LEAST(1), LEAST(1), LEAST(1), LEAST(1));
  rkv_check_range(&c, "headDim", d.keys.shape[3], 1, RKV_HEAD_DIM);
  if (c.code != 0) return c.code;
  const int32_t *s = d.keys.shape;
  SHAPE(&c, &d.values, "values", s[0], s[1], s[2], s[3]);
  SHAPE(&c, &position, "rowPosition", s[0], s[1], s[2]);
  SHAPE(&c, &row_end, "rowEnd", LEAST(1), s[0]);
  if (c.code == 0) SHAPE(&c, &tail_begin, "tailBegin", row_end.shape[0], s[0]);
  SHAPE(&c, &active, "active", s[0]);
  if (c.code == 0) SHAPE(&c, &attended, "attended", row_end.shape[0], s[0], 8);
  rkv_check_range(&c, "layer", layer, 0, (int64_t)row_end.shape[0] - 1);
  if (c.code != 0) return c.code;
  d.position = position.data;
  d.row_end = (int32_t *)row_end.data + (size_t)layer * (size_t)s[0];
  d.tail_begin = (int32_t *)tail_begin.data + (size_t)layer * (size_t)s[0];
  d.active = active.data;
  d.attended = (int64_t *)attended.data + (size_t)layer * (size_t)s[0] * 4;
  d.slots = s[0];
  d.kv_heads = s[1];
  d.capacity = s[2];
  d.head_dim = s[3];
  rkv_rows_object *rows = calloc(1, sizeof *rows);
  if (rows == NULL) return rkv_refuse(RKV_MEMORY, "Cannot %s: the process is out of memory", c.action);
  rows->data = d;
  return rkv_arena_own(owner, &rows->object, NULL, KIND_ROWS);
}
