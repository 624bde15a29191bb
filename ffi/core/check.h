/* check.h: how an op's arguments are checked. A check keeps the first refusal; what follows it does nothing, so that an op's check reads
 * from top to bottom. Sentences name the op, the tensor, the value found and the value wanted. */
#ifndef RKV_CHECK_H
#define RKV_CHECK_H
#include "core.h"

typedef struct {
  const char *action;      /* "attend" */
  int32_t code;            /* 0, or why it was refused */
  rkv_arena_object *arena; /* of the first handle: its queue takes the op */
  bool bundles;            /* all handles must be of that arena, because what is made keeps their addresses */
} rkv_check;

#define ONE_OF(dtype) (1u << (dtype))
#define F32_ONLY ONE_OF(RKV_F32)
#define I32_ONLY ONE_OF(RKV_I32)
#define ROW_DTYPES (ONE_OF(RKV_F32) | ONE_OF(RKV_F16) | ONE_OF(RKV_BF16) | ONE_OF(RKV_Q8))
#define ANY_DTYPE 0xffffffffu

/* Extents of rkv_check_shape: an exact one is its number. */
#define ANY (-1)
#define LEAST(n) (-2 - (int64_t)(n))

void rkv_check_arena(rkv_check *c, rkv_arena_object *arena, const char *name);
void rkv_check_tensor(rkv_check *c, rkv_view *view, int32_t handle, const char *name, unsigned dtypes);
/* Handle 0 leaves view->data NULL. */
void rkv_check_optional(rkv_check *c, rkv_view *view, int32_t handle, const char *name, unsigned dtypes);
void rkv_check_shape(rkv_check *c, const rkv_view *view, const char *name, int32_t rank, const int64_t *extents);
#define SHAPE(c, view, name, ...) \
  rkv_check_shape(c, view, name, (int32_t)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__})
const rkv_layer_data *rkv_check_layer(rkv_check *c, int32_t handle);
/* The layer was not made for attention alone. */
void rkv_check_weights(rkv_check *c, const rkv_layer_data *layer);
const rkv_model_data *rkv_check_model(rkv_check *c, int32_t handle);
const rkv_rows_data *rkv_check_rows(rkv_check *c, int32_t handle);
/* `value` of the thing called `name` lies in [least, most]. */
void rkv_check_range(rkv_check *c, const char *name, int64_t value, int64_t least, int64_t most);
/* `value` is `wanted`, else the sentence says whose is what. */
void rkv_check_equal(rkv_check *c, const char *name, int64_t value, const char *wanted_name, int64_t wanted);
/* A flat f32 tensor of at least `floats` elements. */
void rkv_check_work(rkv_check *c, const rkv_view *view, int64_t floats);
/* A run of rows within [slots, kvHeads, capacity] and of clusters within maxClusters. */
rkv_run rkv_check_run(rkv_check *c, const int32_t *run, int32_t slots, int32_t capacity, int32_t max_clusters);

int32_t rkv_submit(rkv_check *c, rkv_op_id op, const void *args, size_t bytes);

#define RKV_HEAD_DIM 512 /* widest head: what the kernels' scratch (RKV_SCRATCH) holds */
#define RKV_OP_ROWS (1 << 16) /* most rows of x of one op: a list of them must fit into scratch */

/* Last dimension. */
static inline int32_t rkv_width(const rkv_view *v) { return v->shape[v->rank - 1]; }
#endif
