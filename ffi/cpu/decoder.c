/* decoder.c: what lies around the layers of a decoder: rotations, embedding, logits. */
#include "decoder.h"

#define ROTATION_ROWS 16
#define EMBED_ROWS 4

int32_t RKV_FN(rkv_rotations_pieces)(const void *args, int32_t stage) {
  return stage ? RKV_DONE : rkv_ceil_div(((const rkv_rotations_args *)args)->count, ROTATION_ROWS);
}

/* Angles in f64: at position 100,000 an f32 angle would be off by 0.004. */
void RKV_FN(rkv_rotations_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  const rkv_rotations_args *op = args;
  const int32_t half = op->frequencies.shape[0], *position = op->position.data;
  const float *frequencies = op->frequencies.data;
  (void)stage, (void)scratch;
  for (int32_t i = piece * ROTATION_ROWS, end = rkv_min_int(op->count, i + ROTATION_ROWS); i < end; i++) {
    float *row = (float *)op->rotations.data + (int64_t)i * 2 * half;
    for (int32_t k = 0; k < half; k++) {
      const double angle = (double)position[i] * (double)frequencies[k];
      row[k] = (float)(cos(angle) * (double)op->factor);
      row[half + k] = (float)(sin(angle) * (double)op->factor);
    }
  }
}

int32_t RKV_FN(rkv_embed_pieces)(const void *args, int32_t stage) {
  return stage ? RKV_DONE : rkv_ceil_div(((const rkv_embed_args *)args)->count, EMBED_ROWS);
}

void RKV_FN(rkv_embed_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  const rkv_embed_args *op = args;
  const int32_t *token = op->token.data, *active = op->active.data, hidden = op->model->hidden;
  (void)stage, (void)scratch;
  for (int32_t i = piece * EMBED_ROWS, end = rkv_min_int(op->count, i + EMBED_ROWS); i < end; i++) {
    float *x = (float *)op->x.data + (int64_t)i * hidden;
    if (active && !active[i]) continue;
    if (token[i] >= 0 && token[i] < op->model->vocab) RKV_FN(rkv_unpack_row)(x, op->model->embed, token[i]);
    else
      for (int32_t k = 0; k < hidden; k++) x[k] = NAN;
  }
}

static const int32_t *active_from(const rkv_view *active, int32_t first) { return active->data ? (const int32_t *)active->data + first : NULL; }

int32_t RKV_FN(rkv_head_pieces)(const void *args, int32_t stage) {
  const rkv_head_args *op = args;
  const int32_t n = rkv_active_count(active_from(&op->active, op->first), op->count);
  if (n == 0 || stage > 1) return RKV_DONE;
  return stage ? RKV_FN(rkv_product_pieces)(op->model->output, n) : rkv_ceil_div(n, rkv_light_rows(op->model->hidden));
}

/* Stage 0: norm to work, rows close together. Stage 1: the product. */
void RKV_FN(rkv_head_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  const rkv_head_args *op = args;
  const rkv_model_data *model = op->model;
  const int32_t *active = active_from(&op->active, op->first), hidden = model->hidden;
  const int32_t *rows = rkv_active_rows((int32_t *)((char *)scratch + RKV_SCRATCH_ROWS), active, op->count);
  const int32_t n = rkv_active_count(active, op->count);
  const int32_t form = RKV_FN(rkv_form_for)(model->output, NULL, NULL);
  float *work = op->work.data, *block = scratch;
  if (stage == 0) {
    const int32_t size = rkv_light_rows(hidden);
    for (int32_t i = piece * size, end = rkv_min_int(n, i + size); i < end; i++) {
      const float *x = (const float *)op->x.data + (int64_t)(op->first + rkv_row_of(rows, i)) * hidden;
      rkv_norm(block, x, model->output_norm->packed, hidden, model->eps);
      RKV_FN(rkv_prepare)(rkv_row_in(work, form, hidden, i), block, hidden, 0, hidden, form);
    }
    return;
  }
  const rkv_block at = RKV_FN(rkv_product_block)(model->output, n, piece);
  RKV_FN(rkv_product)(block, model->output, rkv_rows_of(work, form, hidden), at, (char *)scratch + RKV_SCRATCH_PRODUCT);
  for (int32_t i = 0; i < at.rows; i++) {
    float *logits = (float *)op->logits.data + (int64_t)(op->first + rkv_row_of(rows, at.row + i)) * model->vocab;
    memcpy(logits + at.col, block + i * RKV_BLOCK_COLS, (size_t)at.cols * 4);
  }
}

int32_t RKV_FN(rkv_advance_pieces)(const void *args, int32_t stage) {
  const rkv_advance_args *op = args;
  int32_t *position = op->position.data;
  const int32_t *active = op->active.data;
  (void)stage;
  for (int32_t s = 0; s < op->position.shape[0]; s++) position[s] += active[s] != 0;
  return RKV_DONE;
}
void RKV_FN(rkv_advance_run)(const void *args, int32_t stage, int32_t piece, void *scratch) { (void)args, (void)stage, (void)piece, (void)scratch; }
