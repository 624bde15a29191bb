/* check_decoder.c: what the decoder's and attention's ops want of their arguments (recallkv.h is the manual). */
#include "check.h"

/* `slot` is RKV_STEP, or a slot of the rows; a step has one row per slot. */
static void check_slot(rkv_check *c, const rkv_rows_data *rows, int32_t slot, int32_t count) {
  if (c->code != 0) return;
  rkv_check_range(c, "slot", slot, RKV_STEP, rows->slots - 1);
  if (slot == RKV_STEP) rkv_check_equal(c, "count", count, "slots", rows->slots);
  else rkv_check_range(c, "count", count, 1, rows->capacity < RKV_OP_ROWS ? rows->capacity : RKV_OP_ROWS);
}

/* The layer and the rows speak of the same heads. */
static void check_heads(rkv_check *c, const rkv_layer_data *layer, const rkv_rows_data *rows) {
  if (c->code != 0) return;
  rkv_check_equal(c, "kvHeads of rows", rows->kv_heads, "kvHeads of layer", layer->kv_heads);
  rkv_check_equal(c, "headDim of rows", rows->head_dim, "headDim of layer", layer->head_dim);
}

int32_t rkv_rotations(int32_t rotations, int32_t position, int32_t frequencies, float factor, int32_t count) {
  rkv_check c = {.action = "make rotations"};
  rkv_rotations_args a = {.factor = factor, .count = count};
  rkv_check_tensor(&c, &a.rotations, rotations, "rotations", F32_ONLY);
  rkv_check_tensor(&c, &a.position, position, "position", I32_ONLY);
  rkv_check_tensor(&c, &a.frequencies, frequencies, "frequencies", F32_ONLY);
  rkv_check_range(&c, "count", count, 1, INT32_MAX);
  SHAPE(&c, &a.position, "position", LEAST(count));
  SHAPE(&c, &a.frequencies, "frequencies", LEAST(1));
  SHAPE(&c, &a.rotations, "rotations", LEAST(count), 2, a.frequencies.shape[0]);
  return rkv_submit(&c, RKV_OP_rotations, &a, sizeof a);
}

int32_t rkv_embed(int32_t x, int32_t model, int32_t token, int32_t active, int32_t count) {
  rkv_check c = {.action = "embed"};
  rkv_embed_args a = {.count = count};
  rkv_check_tensor(&c, &a.x, x, "x", F32_ONLY);
  a.model = rkv_check_model(&c, model);
  rkv_check_tensor(&c, &a.token, token, "token", I32_ONLY);
  rkv_check_optional(&c, &a.active, active, "active", I32_ONLY);
  rkv_check_range(&c, "count", count, 1, INT32_MAX);
  if (c.code == 0) SHAPE(&c, &a.x, "x", LEAST(count), a.model->hidden);
  SHAPE(&c, &a.token, "token", LEAST(count));
  SHAPE(&c, &a.active, "active", LEAST(count));
  return rkv_submit(&c, RKV_OP_embed, &a, sizeof a);
}

int32_t rkv_attn_in(int32_t q, int32_t rows, int32_t x, int32_t layer, int32_t rotations, int32_t position, int32_t work, int32_t slot,
                    int32_t count) {
  rkv_check c = {.action = "begin a layer (attnIn)"};
  rkv_attn_in_args a = {.slot = slot, .count = count};
  rkv_check_tensor(&c, &a.q, q, "q", F32_ONLY);
  a.rows = rkv_check_rows(&c, rows);
  rkv_check_tensor(&c, &a.x, x, "x", F32_ONLY);
  a.layer = rkv_check_layer(&c, layer);
  rkv_check_weights(&c, a.layer);
  rkv_check_tensor(&c, &a.rotations, rotations, "rotations", F32_ONLY);
  rkv_check_tensor(&c, &a.position, position, "position", I32_ONLY);
  rkv_check_tensor(&c, &a.work, work, "work", F32_ONLY);
  if (c.code == 0) {
    const rkv_layer_data *l = a.layer;
    check_slot(&c, a.rows, slot, count);
    check_heads(&c, l, a.rows);
    SHAPE(&c, &a.q, "q", LEAST(count), l->heads, l->head_dim);
    SHAPE(&c, &a.x, "x", LEAST(count), l->hidden);
    SHAPE(&c, &a.rotations, "rotations", LEAST(count), 2, l->rope_dim / 2);
    SHAPE(&c, &a.position, "position", LEAST(count));
    rkv_check_work(&c, &a.work, count * (l->hidden + (int64_t)2 * l->kv_heads * l->head_dim));
  }
  return rkv_submit(&c, RKV_OP_attn_in, &a, sizeof a);
}

int32_t rkv_queries(int32_t q, int32_t x, int32_t layer, int32_t active, int32_t rotations, int32_t work, int32_t count) {
  rkv_check c = {.action = "make queries"};
  rkv_queries_args a = {.count = count};
  rkv_check_tensor(&c, &a.q, q, "q", F32_ONLY);
  rkv_check_tensor(&c, &a.x, x, "x", F32_ONLY);
  a.layer = rkv_check_layer(&c, layer);
  rkv_check_weights(&c, a.layer);
  rkv_check_optional(&c, &a.active, active, "active", I32_ONLY);
  rkv_check_tensor(&c, &a.rotations, rotations, "rotations", F32_ONLY);
  rkv_check_tensor(&c, &a.work, work, "work", F32_ONLY);
  rkv_check_range(&c, "count", count, 1, RKV_OP_ROWS);
  if (c.code == 0) {
    const rkv_layer_data *l = a.layer;
    SHAPE(&c, &a.q, "q", LEAST(count), l->heads, l->head_dim);
    SHAPE(&c, &a.x, "x", LEAST(count), l->hidden);
    SHAPE(&c, &a.active, "active", LEAST(count));
    SHAPE(&c, &a.rotations, "rotations", LEAST(count), 2, l->rope_dim / 2);
    rkv_check_work(&c, &a.work, (int64_t)count * l->hidden);
  }
  return rkv_submit(&c, RKV_OP_queries, &a, sizeof a);
}

int32_t rkv_attn_out(int32_t x, int32_t attended, int32_t layer, int32_t active, int32_t work, int32_t count) {
  rkv_check c = {.action = "end a layer (attnOut)"};
  rkv_attn_out_args a = {.count = count};
  rkv_check_tensor(&c, &a.x, x, "x", F32_ONLY);
  rkv_check_tensor(&c, &a.attended, attended, "attended", F32_ONLY);
  a.layer = rkv_check_layer(&c, layer);
  rkv_check_weights(&c, a.layer);
  rkv_check_optional(&c, &a.active, active, "active", I32_ONLY);
  rkv_check_tensor(&c, &a.work, work, "work", F32_ONLY);
  rkv_check_range(&c, "count", count, 1, RKV_OP_ROWS);
  if (c.code == 0) {
    const rkv_layer_data *l = a.layer;
    SHAPE(&c, &a.x, "x", LEAST(count), l->hidden);
    SHAPE(&c, &a.attended, "attended", LEAST(count), l->heads, l->head_dim);
    SHAPE(&c, &a.active, "active", LEAST(count));
    rkv_check_work(&c, &a.work, count * (l->hidden + (int64_t)2 * l->intermediate));
  }
  return rkv_submit(&c, RKV_OP_attn_out, &a, sizeof a);
}

int32_t rkv_head(int32_t logits, int32_t x, int32_t model, int32_t active, int32_t work, int32_t first, int32_t count) {
  rkv_check c = {.action = "make logits (head)"};
  rkv_head_args a = {.first = first, .count = count};
  rkv_check_tensor(&c, &a.logits, logits, "logits", F32_ONLY);
  rkv_check_tensor(&c, &a.x, x, "x", F32_ONLY);
  a.model = rkv_check_model(&c, model);
  rkv_check_optional(&c, &a.active, active, "active", I32_ONLY);
  rkv_check_tensor(&c, &a.work, work, "work", F32_ONLY);
  rkv_check_range(&c, "first", first, 0, INT32_MAX);
  rkv_check_range(&c, "count", count, 1, RKV_OP_ROWS);
  if (c.code == 0) {
    SHAPE(&c, &a.logits, "logits", LEAST((int64_t)first + count), a.model->vocab);
    SHAPE(&c, &a.x, "x", LEAST((int64_t)first + count), a.model->hidden);
    SHAPE(&c, &a.active, "active", LEAST((int64_t)first + count));
    rkv_check_work(&c, &a.work, (int64_t)count * a.model->hidden);
  }
  return rkv_submit(&c, RKV_OP_head, &a, sizeof a);
}

int32_t rkv_greedy(int32_t token, int32_t logprob, int32_t logits, int32_t active, int32_t first, int32_t count) {
  rkv_check c = {.action = "choose greedily"};
  rkv_greedy_args a = {.first = first, .count = count};
  rkv_check_tensor(&c, &a.token, token, "token", I32_ONLY);
  rkv_check_tensor(&c, &a.logprob, logprob, "logprob", F32_ONLY);
  rkv_check_tensor(&c, &a.logits, logits, "logits", F32_ONLY);
  rkv_check_optional(&c, &a.active, active, "active", I32_ONLY);
  rkv_check_range(&c, "first", first, 0, INT32_MAX);
  rkv_check_range(&c, "count", count, 1, INT32_MAX - (int64_t)first);
  SHAPE(&c, &a.logits, "logits", LEAST((int64_t)first + count), LEAST(1));
  SHAPE(&c, &a.token, "token", LEAST((int64_t)first + count));
  SHAPE(&c, &a.logprob, "logprob", LEAST((int64_t)first + count));
  SHAPE(&c, &a.active, "active", LEAST((int64_t)first + count));
  return rkv_submit(&c, RKV_OP_greedy, &a, sizeof a);
}

int32_t rkv_advance(int32_t position, int32_t active) {
  rkv_check c = {.action = "advance"};
  rkv_advance_args a;
  rkv_check_tensor(&c, &a.position, position, "position", I32_ONLY);
  rkv_check_tensor(&c, &a.active, active, "active", I32_ONLY);
  SHAPE(&c, &a.position, "position", ANY);
  if (c.code == 0) SHAPE(&c, &a.active, "active", a.position.shape[0]);
  return rkv_submit(&c, RKV_OP_advance, &a, sizeof a);
}

static int64_t rows_of(const rkv_view *v) {
  if (v->rank == 1) return v->shape[0];
  int64_t rows = 1;
  for (int32_t i = 0; i < v->rank - 1; i++) rows *= v->shape[i];
  return rows;
}

int32_t rkv_copy(int32_t to, int32_t to_row, int32_t from, int32_t from_row, int32_t count) {
  rkv_check c = {.action = "copy"};
  rkv_copy_args a = {.to_row = to_row, .from_row = from_row, .count = count};
  rkv_check_tensor(&c, &a.to, to, "to", ANY_DTYPE);
  if (c.code == 0) rkv_check_tensor(&c, &a.from, from, "from", ONE_OF(a.to.dtype));
  if (c.code == 0) {
    rkv_check_equal(&c, "width of to", a.to.rank == 1 ? 1 : rkv_width(&a.to), "width of from", a.from.rank == 1 ? 1 : rkv_width(&a.from));
    rkv_check_range(&c, "count", count, 0, INT32_MAX);
    rkv_check_range(&c, "toRow", to_row, 0, rows_of(&a.to) - count);
    rkv_check_range(&c, "fromRow", from_row, 0, rows_of(&a.from) - count);
    if (c.code == 0 && a.to.data == a.from.data) c.code = rkv_refuse(RKV_RANGE, "Cannot copy: to and from are the same tensor, want two");
  }
  return rkv_submit(&c, RKV_OP_copy, &a, sizeof a);
}

int32_t rkv_attend_chunk(int32_t attended, int32_t lse, int32_t q, int32_t rows, int32_t layer, int32_t slot, int32_t count) {
  rkv_check c = {.action = "attend a chunk"};
  rkv_attend_chunk_args a = {.slot = slot, .count = count};
  rkv_check_tensor(&c, &a.attended, attended, "attended", F32_ONLY);
  rkv_check_optional(&c, &a.lse, lse, "lse", F32_ONLY);
  rkv_check_tensor(&c, &a.q, q, "q", F32_ONLY);
  a.rows = rkv_check_rows(&c, rows);
  a.layer = rkv_check_layer(&c, layer);
  if (c.code == 0) {
    check_heads(&c, a.layer, a.rows);
    rkv_check_range(&c, "slot", slot, 0, a.rows->slots - 1);
    rkv_check_range(&c, "count", count, 1, a.rows->capacity);
    SHAPE(&c, &a.attended, "attended", LEAST(count), a.layer->heads, a.layer->head_dim);
    SHAPE(&c, &a.lse, "lse", LEAST(count), a.layer->heads);
    SHAPE(&c, &a.q, "q", LEAST(count), a.layer->heads, a.layer->head_dim);
  }
  return rkv_submit(&c, RKV_OP_attend_chunk, &a, sizeof a);
}

int32_t rkv_attend(int32_t attended, int32_t lse, int32_t q, int32_t rows, int32_t layer, int32_t index, int32_t work, int32_t sink) {
  rkv_check c = {.action = "attend"};
  rkv_attend_args a = {.sink = sink};
  rkv_check_tensor(&c, &a.attended, attended, "attended", F32_ONLY);
  rkv_check_optional(&c, &a.lse, lse, "lse", F32_ONLY);
  rkv_check_tensor(&c, &a.q, q, "q", F32_ONLY);
  a.rows = rkv_check_rows(&c, rows);
  a.layer = rkv_check_layer(&c, layer);
  rkv_check_optional(&c, &a.index, index, "index", I32_ONLY);
  rkv_check_tensor(&c, &a.work, work, "work", F32_ONLY);
  if (c.code == 0) {
    const rkv_layer_data *l = a.layer;
    int32_t slots = a.rows->slots, per_head = a.index.data != NULL && a.index.rank == 3 && a.index.shape[1] == l->heads;
    check_heads(&c, l, a.rows);
    SHAPE(&c, &a.attended, "attended", slots, l->heads, l->head_dim);
    SHAPE(&c, &a.lse, "lse", slots, l->heads);
    SHAPE(&c, &a.q, "q", slots, l->heads, l->head_dim);
    SHAPE(&c, &a.index, "index", slots, per_head ? l->heads : l->kv_heads, ANY);
    rkv_check_range(&c, "sink", sink, 0, INT32_MAX);
    int64_t pieces = ((int64_t)a.rows->capacity + RKV_PIECE - 1) / RKV_PIECE + 2;
    rkv_check_work(&c, &a.work, (int64_t)slots * l->heads * pieces * (l->head_dim + 2));
  }
  return rkv_submit(&c, RKV_OP_attend, &a, sizeof a);
}
