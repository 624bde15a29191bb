/* beside.c: which ops run on the second stream, and what waits for what. A build is the ops of one segment: it begins with its seeds. Builds
 * follow one another on the second stream, each behind all that the main stream had been given; so a build that has ended has those before it
 * behind it too. */
#include "beside.h"

#define COUNT(struct) ((sizeof(rkv_##struct##_args) - sizeof(rkv_run)) / sizeof(rkv_view)) /* tensors of a clustering op: they come first */
static const uint8_t tensors[RKV_OP_COUNT] = {
  [RKV_OP_seed_centroids] = COUNT(seed_centroids), [RKV_OP_assign] = COUNT(assign), [RKV_OP_group] = COUNT(group),
  [RKV_OP_centroid_means] = COUNT(centroid_means), [RKV_OP_radius] = COUNT(radius), [RKV_OP_permute_rows] = COUNT(permute_rows),
};

CUresult rkv_beside_start(rkv_cuda *c) {
  int low = 0, high = 0;
  CUresult result = cuCtxGetStreamPriorityRange(&low, &high);
  if (result != 0) return result;
  /* What runs beside is many short kernels, one after the other: they go first, or each would wait for a whole one of a chunk. */
  if ((result = cuStreamCreateWithPriority(&c->stream, RKV_CU_NON_BLOCKING, low)) != 0) return result;
  if ((result = cuStreamCreateWithPriority(&c->beside, RKV_CU_NON_BLOCKING, high)) != 0) return result;
  for (int i = 0; i < RKV_BUILDS; i++)
    if ((result = cuEventCreate(&c->builds[i].ended, RKV_CU_NO_TIMING)) != 0) return result;
  c->target = c->stream;
  return cuEventCreate(&c->main_point, RKV_CU_NO_TIMING);
}

void rkv_beside_stop(rkv_cuda *c) {
  for (int i = 0; i < RKV_BUILDS; i++) cuEventDestroy_v2(c->builds[i].ended);
  cuEventDestroy_v2(c->main_point);
  cuStreamDestroy_v2(c->beside);
  cuStreamDestroy_v2(c->stream);
}

static void keep(rkv_cuda *c, CUresult result) {
  if (c->result == 0) c->result = result;
}

/* The second stream waits for all that the main one was given. */
static void follow(rkv_cuda *c) {
  if (!c->main_went_on) return;
  keep(c, cuEventRecord(c->main_point, c->stream));
  keep(c, cuStreamWaitEvent(c->beside, c->main_point, 0));
  c->main_went_on = false;
}

/* The main stream waits for builds before number `end`. */
static void join(rkv_cuda *c, uint64_t end) {
  if (end <= c->joined) return;
  keep(c, cuStreamWaitEvent(c->stream, c->builds[(end - 1) % RKV_BUILDS].ended, 0));
  c->joined = end;
}

void rkv_beside_join(rkv_cuda *c) {
  join(c, c->begun);
  c->main_went_on = true;
}

static rkv_range range_of(const void *begin, size_t bytes) { return (rkv_range){(uintptr_t)begin, (uintptr_t)begin + (begin != NULL ? bytes : 0)}; }

static rkv_range range_of_view(const rkv_view *v) {
  size_t rows = 1;
  for (int32_t i = 0; i + 1 < v->rank; i++) rows *= (size_t)v->shape[i];
  return range_of(v->data, v->data == NULL ? 0 : rows * rkv_row_bytes(v->dtype, v->shape[v->rank - 1]));
}

/* Makes the main stream wait for the builds that touch a range. */
static void join_range(rkv_cuda *c, rkv_range r) {
  for (uint64_t b = c->begun; b > c->joined; b--) {
    const rkv_build *build = &c->builds[(b - 1) % RKV_BUILDS];
    for (int32_t i = 0; i < build->count; i++)
      if (r.begin < build->touched[i].end && build->touched[i].begin < r.end) return join(c, b);
  }
}

static void join_views(rkv_cuda *c, const rkv_view *const *views, int32_t count) {
  for (int32_t i = 0; i < count; i++) join_range(c, range_of_view(views[i]));
}
#define JOIN_VIEWS(...) join_views(c, (const rkv_view *[]){__VA_ARGS__}, sizeof((const rkv_view *[]){__VA_ARGS__}) / sizeof(rkv_view *))

static void join_rows(rkv_cuda *c, const rkv_rows_data *rows) {
  const size_t slots = (size_t)rows->slots * 4;
  JOIN_VIEWS(&rows->keys, &rows->values);
  join_range(c, range_of(rows->position, slots * (size_t)rows->kv_heads * (size_t)rows->capacity));
  join_range(c, range_of(rows->row_end, slots));
  join_range(c, range_of(rows->tail_begin, slots));
  join_range(c, range_of(rows->active, slots));
}

/* An op of the main stream. Those that a chunk is made of are known by what they touch, scratch of the device's own and weights aside: nothing
 * that runs beside touches these. */
static void begin_main(rkv_cuda *c, int32_t op, const void *args) {
  switch (op) {
    case RKV_OP_rotations: {
      const rkv_rotations_args *a = args;
      JOIN_VIEWS(&a->rotations, &a->position, &a->frequencies);
      break;
    }
    case RKV_OP_embed: {
      const rkv_embed_args *a = args;
      JOIN_VIEWS(&a->x, &a->token, &a->active);
      break;
    }
    case RKV_OP_attn_in: {
      const rkv_attn_in_args *a = args;
      JOIN_VIEWS(&a->q, &a->x, &a->rotations, &a->position, &a->work);
      join_rows(c, a->rows);
      break;
    }
    case RKV_OP_attend_chunk: {
      const rkv_attend_chunk_args *a = args;
      JOIN_VIEWS(&a->attended, &a->lse, &a->q);
      join_rows(c, a->rows);
      break;
    }
    case RKV_OP_attn_out: {
      const rkv_attn_out_args *a = args;
      JOIN_VIEWS(&a->x, &a->attended, &a->active, &a->work);
      break;
    }
    default: join(c, c->begun);
  }
  c->main_went_on = true;
}

void rkv_beside_begin(rkv_cuda *c, int32_t op, const void *args) {
  const int32_t count = tensors[op];
  if (count == 0) {
    if (c->begun == c->joined) c->main_went_on = true;
    else begin_main(c, op, args);
    return;
  }
  follow(c);
  if (op == RKV_OP_seed_centroids || c->begun == c->joined) {
    if (c->begun - c->joined == RKV_BUILDS) join(c, c->joined + 1);
    c->builds[c->begun++ % RKV_BUILDS].count = 0;
  }
  rkv_build *build = &c->builds[(c->begun - 1) % RKV_BUILDS];
  for (int32_t i = 0; i < count; i++) {
    const rkv_range r = range_of_view((const rkv_view *)args + i);
    int32_t at = 0;
    while (at < build->count && build->touched[at].begin != r.begin) at++;
    if (at == RKV_BUILD_RANGES) { /* not one of ours: then nothing passes it */
      build->touched[0] = (rkv_range){0, UINTPTR_MAX};
      continue;
    }
    if (at == build->count) build->touched[build->count++] = r;
    else if (r.end > build->touched[at].end) build->touched[at].end = r.end;
  }
  c->target = c->beside;
}

void rkv_beside_end(rkv_cuda *c) {
  if (c->target == c->stream) return;
  keep(c, cuEventRecord(c->builds[(c->begun - 1) % RKV_BUILDS].ended, c->beside));
  c->target = c->stream;
}

void rkv_beside_write(rkv_cuda *c, const void *to, size_t bytes) {
  join_range(c, range_of(to, bytes));
  c->main_went_on = true;
}

CUresult rkv_beside_record(rkv_cuda *c, CUevent event) {
  if (c->begun == c->joined) return cuEventRecord(event, c->stream);
  c->result = 0;
  c->main_went_on = true;
  follow(c);
  return c->result != 0 ? c->result : cuEventRecord(event, c->beside);
}
