/* rows.c: rows on the move: into cluster order, gathered, copied; and the tail, which is only a number. */
#include "cpu.h"
#include "rowtypes.h"

/* Bytes of a row of a tensor whose rows are its third dimension: of width shape[3], or single elements. */
static size_t row_bytes_of(const rkv_view *view) { return rkv_row_bytes(view->dtype, view->rank == 4 ? view->shape[3] : 1); }

/* One row; small sizes as single moves, because a call of memcpy for four bytes costs more than the bytes. */
static void move_row(char *to, const char *from, size_t bytes) {
  if (bytes == 4) memcpy(to, from, 4);
  else memcpy(to, from, bytes);
}

/* ---- permute_rows: gathers into work, then copies back, RKV_PIECE rows of a head per piece -------------------------------------------- */

int32_t RKV_FN(rkv_permute_rows_pieces)(const void *args, int32_t stage) {
  const rkv_permute_rows_args *a = args;
  return stage < 2 ? a->tensor.shape[1] * rkv_ceil_div(a->run.rows, RKV_PIECE) : RKV_DONE;
}

void RKV_FN(rkv_permute_rows_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  (void)scratch;
  const rkv_permute_rows_args *a = args;
  const rkv_run *run = &a->run;
  const int32_t pieces = rkv_ceil_div(run->rows, RKV_PIECE), head = piece / pieces, first = piece % pieces * RKV_PIECE;
  const int32_t count = rkv_min_int(RKV_PIECE, run->rows - first);
  const int64_t plane = ((int64_t)run->slot * a->tensor.shape[1] + head) * a->tensor.shape[2] + run->begin;
  const size_t bytes = row_bytes_of(&a->tensor);
  char *rows = (char *)a->tensor.data + (size_t)plane * bytes;
  char *work = (char *)a->work.data + ((size_t)head * run->rows + first) * bytes;
  if (stage == 1) {
    memcpy(rows + first * bytes, work, count * bytes);
    return;
  }
  const int32_t *order = (const int32_t *)a->order.data + plane + first;
  for (int32_t i = 0; i < count; i++) {
    const uint32_t from = (uint32_t)(order[i] - run->begin);
    move_row(work + (size_t)i * bytes, rows + (from < (uint32_t)run->rows ? from : (uint32_t)(first + i)) * bytes, bytes);
  }
}

/* ---- gather_rows: RKV_PIECE chosen rows of a head per piece -------------------------------------------------------------------------- */

int32_t RKV_FN(rkv_gather_rows_pieces)(const void *args, int32_t stage) {
  const rkv_gather_rows_args *a = args;
  return stage == 0 ? a->to.shape[0] * a->to.shape[1] * rkv_ceil_div(a->to.shape[2], RKV_PIECE) : RKV_DONE;
}

void RKV_FN(rkv_gather_rows_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  (void)stage, (void)scratch;
  const rkv_gather_rows_args *a = args;
  const int32_t budget = a->to.shape[2], width = a->to.shape[3], capacity = a->from.shape[2], dtype = a->from.dtype;
  const int32_t pieces = rkv_ceil_div(budget, RKV_PIECE), plane = piece / pieces, first = piece % pieces * RKV_PIECE;
  const int32_t end = rkv_min_int(budget, first + RKV_PIECE);
  const size_t bytes = rkv_row_bytes(dtype, width);
  const char *from = (const char *)a->from.data + (size_t)plane * capacity * bytes;
  const int32_t *index = (const int32_t *)a->index.data + (int64_t)plane * budget;
  float *to = (float *)a->to.data + (int64_t)plane * budget * width;
  for (int32_t i = first; i < end; i++) {
    float *row = to + (int64_t)i * width;
    if ((uint32_t)index[i] < (uint32_t)capacity) rkv_row_to_f32(row, from + (size_t)index[i] * bytes, dtype, width);
    else memset(row, 0, (size_t)width * 4);
  }
}

/* ---- set_tail, copy -------------------------------------------------------------------------------------------------------------- */

int32_t RKV_FN(rkv_set_tail_pieces)(const void *args, int32_t stage) {
  (void)stage;
  const rkv_set_tail_args *a = args;
  const rkv_rows_data *rows = a->rows;
  for (int32_t slot = 0; slot < rows->slots; slot++)
    if (rows->active[slot]) {
      const int32_t begin = rkv_max_int(a->sink, rows->row_end[slot] - a->width);
      rows->tail_begin[slot] = rkv_max_int(rows->tail_begin[slot], begin);
    }
  return RKV_DONE;
}

void RKV_FN(rkv_set_tail_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  (void)args, (void)stage, (void)piece, (void)scratch;
}

#define COPY_BYTES (256 << 10) /* per piece: far more than a hand-off costs */

static size_t copy_row_bytes(const rkv_view *view) { return rkv_row_bytes(view->dtype, view->rank == 1 ? 1 : view->shape[view->rank - 1]); }

int32_t RKV_FN(rkv_copy_pieces)(const void *args, int32_t stage) {
  const rkv_copy_args *a = args;
  return stage == 0 ? (int32_t)((a->count * copy_row_bytes(&a->to) + COPY_BYTES - 1) / COPY_BYTES) : RKV_DONE;
}

void RKV_FN(rkv_copy_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  (void)stage, (void)scratch;
  const rkv_copy_args *a = args;
  const size_t row = copy_row_bytes(&a->to), all = a->count * row, first = (size_t)piece * COPY_BYTES;
  const size_t bytes = all - first < COPY_BYTES ? all - first : COPY_BYTES;
  memcpy((char *)a->to.data + a->to_row * row + first, (const char *)a->from.data + a->from_row * row + first, bytes);
}
