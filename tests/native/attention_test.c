/* attention_test.c: prefill and decode attention against a softmax in f64. */
#include "native.h"

typedef struct { int32_t heads, kv_heads, dim, key_dtype, value_dtype, window; float soft_cap; } shape;

static rkv_layer_data layer_of(const shape *s) {
  return (rkv_layer_data){.heads = s->heads, .kv_heads = s->kv_heads, .head_dim = s->dim, .window = s->window, .soft_cap = s->soft_cap, .scale = 1 / sqrtf((float)s->dim)};
}

/* out[dim] and the log-sum-exp of one head over the listed rows of (slot, kv_head). */
static double attend(double *out, const float *q, const rkv_rows_data *rows, const rkv_layer_data *layer, int32_t slot, int32_t kv_head, const int32_t *list, int32_t n) {
  const int32_t dim = layer->head_dim;
  double largest = -INFINITY, sum = 0, *s = malloc((size_t)(n + 1) * 8);
  for (int32_t i = 0; i < n; i++) {
    const char *key = row_of(rows, &rows->keys, slot, kv_head, list[i]);
    s[i] = 0;
    for (int32_t d = 0; d < dim; d++) s[i] += (double)q[d] * row_value(key, rows->keys.dtype, dim, d);
    s[i] *= (double)layer->scale;
    if (layer->soft_cap > 0) s[i] = (double)layer->soft_cap * tanh(s[i] / (double)layer->soft_cap);
    largest = fmax(largest, s[i]);
  }
  for (int32_t d = 0; d < dim; d++) out[d] = 0;
  for (int32_t i = 0; i < n; i++) sum += s[i] = exp(s[i] - largest);
  for (int32_t i = 0; i < n; i++) {
    const char *value = row_of(rows, &rows->values, slot, kv_head, list[i]);
    for (int32_t d = 0; d < dim; d++) out[d] += s[i] / sum * row_value(value, rows->values.dtype, dim, d);
  }
  free(s);
  return n ? largest + log(sum) : -(double)INFINITY;
}

/* near: how far an output may be off, relative to 1 + its size. */
static void compare(const char *what, const float *got, float lse, const double *wanted, double wanted_lse, int32_t dim, int32_t at, int32_t head, double near) {
  int32_t off = -1;
  for (int32_t d = 0; d < dim; d++)
    if (!(fabs((double)got[d] - wanted[d]) <= near * (1 + fabs(wanted[d])))) off = d;
  CHECK(off < 0, "%s: row %d head %d element %d is %g, wanted %g", what, at, head, off, (double)got[off < 0 ? 0 : off], wanted[off < 0 ? 0 : off]);
  CHECK(wanted_lse == (double)lse || fabs((double)lse - wanted_lse) <= near * (1 + fabs(wanted_lse)), "%s: row %d head %d lse is %g, wanted %g", what, at, head, (double)lse, wanted_lse);
}

/* ---- prefill ------------------------------------------------------------------------------------------------------------------------------ */

static void run_chunks(const rkv_cpu *cpu, rkv_attend_chunk_args args, rkv_rows_data *rows, int32_t length, int32_t chunk, int32_t begin, int order) {
  const int32_t wide = args.layer->heads * args.layer->head_dim;
  float *attended = args.attended.data, *lse = args.lse.data, *q = args.q.data;
  for (int32_t at = begin; at < length; at += chunk) {
    args.count = length - at < chunk ? length - at : chunk;
    rows->row_end[args.slot] = at + args.count;
    args.attended.data = attended + (size_t)at * (size_t)wide, args.lse.data = lse + (size_t)at * (size_t)args.layer->heads, args.q.data = q + (size_t)at * (size_t)wide;
    run_op(cpu, RKV_OP_attend_chunk, &args, order);
  }
}

static void chunk_case(const rkv_cpu *cpu, const shape *s, int32_t length, int32_t chunk, int32_t poisoned) {
  const rkv_layer_data layer = layer_of(s);
  const int32_t slot = 1, wide = s->heads * s->dim;
  /* rows of 16 bits and less are computed in BF16 where there are instructions for it: 2^-8 of the logits and values, a few of them */
  const double near = strcmp(cpu->name, "avx512bf16") == 0 && s->key_dtype != RKV_F32 && s->value_dtype != RKV_F32 ? 1.5e-2 : 4e-6;
  rkv_rows_data rows = make_rows(2, s->kv_heads, length + 3, s->dim, s->key_dtype, s->value_dtype);
  float *q = normals((size_t)length * (size_t)wide), *out = floats((size_t)length * (size_t)wide), *other = floats((size_t)length * (size_t)wide);
  float *lse = floats((size_t)length * (size_t)s->heads), *other_lse = floats((size_t)length * (size_t)s->heads);
  int32_t *list = ints((size_t)length);
  double *wanted = bytes((size_t)s->dim * 8);
  fill_rows(&rows, slot, length);
  if (poisoned >= 0) {                                                /* a row of NaN is no business of the queries before it */
    memset(row_of(&rows, &rows.keys, slot, 0, poisoned), 0xff, rkv_row_bytes(s->key_dtype, s->dim));
    memset(row_of(&rows, &rows.values, slot, 0, poisoned), 0xff, rkv_row_bytes(s->value_dtype, s->dim));
  }
  rkv_attend_chunk_args args = {.attended = VIEW(out, RKV_F32, length, s->heads, s->dim), .lse = VIEW(lse, RKV_F32, length, s->heads),
    .q = VIEW(q, RKV_F32, length, s->heads, s->dim), .rows = &rows, .layer = &layer, .slot = slot};
  run_chunks(cpu, args, &rows, length, length, 0, 2);
  args.attended.data = other, args.lse.data = other_lse;
  run_chunks(cpu, args, &rows, length, chunk, 0, 1);
  const int32_t clean = poisoned < 0 ? length : poisoned;
  CHECK(same(out, other, (size_t)clean * (size_t)wide), "chunks of %d give other bits than one of %d (dim %d group %d)", chunk, length, s->dim, s->heads / s->kv_heads);
  CHECK(same(lse, other_lse, (size_t)clean * (size_t)s->heads), "chunks of %d give another lse than one of %d", chunk, length);
  for (int32_t i = 0; i < clean; i += 1 + below(1 + length / 40))
    for (int32_t h = 0; h < s->heads; h++) {
      int32_t n = 0;
      for (int32_t j = 0; j <= i; j++)
        if (s->window == 0 || i - j < s->window) list[n++] = j;
      const float *row = q + (size_t)i * (size_t)wide + (size_t)h * (size_t)s->dim;
      const double wanted_lse = attend(wanted, row, &rows, &layer, slot, h / (s->heads / s->kv_heads), list, n);
      compare("attend_chunk", out + (row - q), lse[(size_t)i * (size_t)s->heads + (size_t)h], wanted, wanted_lse, s->dim, i, h, near);
    }
  free_all();
}

static const shape shapes[] = {
  {6, 3, 32, RKV_F32, RKV_F32, 0, 0}, {2, 2, 48, RKV_F16, RKV_BF16, 0, 0}, {3, 1, 64, RKV_Q8, RKV_Q8, 0, 0},  {8, 1, 80, RKV_BF16, RKV_F16, 0, 0},
  {4, 2, 128, RKV_F32, RKV_Q8, 37, 0}, {5, 1, 20, RKV_F16, RKV_F16, 0, 3}, {7, 1, 33, RKV_Q8, RKV_F32, 150, 0}, {2, 1, 256, RKV_BF16, RKV_BF16, 0, 0},
};

void test_attend_chunk(const rkv_cpu *cpu) {
  seed(4);
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
    chunk_case(cpu, &shapes[s], 1, 1, -1);
    chunk_case(cpu, &shapes[s], 70, 1, -1);
    chunk_case(cpu, &shapes[s], 128, 50, -1);
    chunk_case(cpu, &shapes[s], 391, 97, -1);
    chunk_case(cpu, &shapes[s], 200, 64, 173);
  }
}

/* ---- decode ------------------------------------------------------------------------------------------------------------------------------- */

/* budget < 0: no index. per_head: an index for each head. Slots have lengths of their own; the last one but one is not active. */
static void step_case(const rkv_cpu *cpu, const shape *s, int32_t slots, int32_t length, int32_t sink, int32_t budget, int32_t tail, int32_t per_head) {
  const rkv_layer_data layer = layer_of(s);
  /* rows of bytes may meet 16-bit queries and probabilities */
  const double near = strcmp(cpu->name, "avx512bf16") == 0 && (s->key_dtype == RKV_Q8 || s->value_dtype == RKV_Q8) ? 1e-4 : 4e-6;
  const int32_t capacity = length + 5, wide = s->heads * s->dim, group = s->heads / s->kv_heads, units = per_head ? s->heads : s->kv_heads;
  const int32_t pieces = (capacity + RKV_PIECE - 1) / RKV_PIECE + 2, width = budget < 0 ? 0 : budget;
  rkv_rows_data rows = make_rows(slots, s->kv_heads, capacity, s->dim, s->key_dtype, s->value_dtype);
  float *q = normals((size_t)slots * (size_t)wide), *out = floats((size_t)slots * (size_t)wide), *other = floats((size_t)slots * (size_t)wide);
  float *lse = floats((size_t)slots * (size_t)s->heads);
  int32_t *index = ints((size_t)slots * (size_t)units * (size_t)width + 1), *list = ints((size_t)(capacity + width));
  double *wanted = bytes((size_t)s->dim * 8);
  for (int32_t i = 0; i < slots; i++) {
    const int32_t end = i == 0 ? length : i == 1 ? 0 : below(length + 1);
    fill_rows(&rows, i, end);
    rows.tail_begin[i] = end > tail ? end - tail : 0;
    ((int32_t *)rows.active)[i] = slots < 3 || i != slots - 2;
    for (int32_t u = 0; u < units; u++)
      for (int32_t k = 0, valid = below(width + 1); k < width; k++)      /* runs of rows; some name no row of the slot */
        index[((size_t)i * (size_t)units + (size_t)u) * (size_t)width + (size_t)k] = k >= valid ? -1 : k % 7 && k ? index[((size_t)i * (size_t)units + (size_t)u) * (size_t)width + (size_t)k - 1] + 1 : below(capacity);
  }
  rkv_attend_args args = {.attended = VIEW(out, RKV_F32, slots, s->heads, s->dim), .lse = VIEW(lse, RKV_F32, slots, s->heads), .q = VIEW(q, RKV_F32, slots, s->heads, s->dim),
    .rows = &rows, .layer = &layer, .index = budget < 0 ? NONE : VIEW(index, RKV_I32, slots, units, budget),
    .work = VIEW(floats((size_t)slots * (size_t)s->heads * (size_t)pieces * (size_t)(s->dim + 2)), RKV_F32, slots, s->heads, pieces, s->dim + 2), .sink = sink};
  run_op(cpu, RKV_OP_attend, &args, 2);
  int64_t counted[3];
  memcpy(counted, rows.attended, sizeof counted);
  args.attended.data = other;
  for (int32_t alone = 0; alone < slots; alone++) {                   /* each slot by itself gives the same bits */
    int32_t *active = (int32_t *)rows.active, kept[64];
    memcpy(kept, active, (size_t)slots * 4);
    for (int32_t i = 0; i < slots; i++) active[i] = kept[i] && i == alone;
    run_op(cpu, RKV_OP_attend, &args, 1);
    memcpy(active, kept, (size_t)slots * 4);
  }
  CHECK(same(out, other, (size_t)slots * (size_t)wide), "attend: a slot's bits change with its neighbours (dim %d group %d)", s->dim, group);
  for (int32_t i = 0; i < slots; i++) {
    int64_t sinks = 0, chosen = 0, tails = 0;
    for (int32_t h = 0; h < s->heads; h++) {
      const int32_t end = rows.row_end[i], unit = per_head ? h : h / group, newest = end - 1;
      int32_t n = 0;
      const float *got = out + (size_t)i * (size_t)wide + (size_t)h * (size_t)s->dim;
      if (!rows.active[i]) {
        CHECK(got[0] != got[0], "attend: slot %d is not active, yet it was written", i);
        continue;
      }
      for (; n < sink && n < end; n++) list[n] = n;
      if (h % group == 0) sinks += n;
      const int32_t after_sink = n;
      for (int32_t k = 0; k < width; k++) {
        const int32_t row = index[((size_t)i * (size_t)units + (size_t)unit) * (size_t)width + (size_t)k];
        if (row >= 0 && row < end) list[n++] = row;
      }
      if (per_head || h % group == 0) chosen += n - after_sink;
      const int32_t after_index = n;
      for (int32_t row = rows.tail_begin[i] > sink ? rows.tail_begin[i] : sink; row < end; row++)
        if (s->window == 0 || newest - row < s->window) list[n++] = row;
      if (h % group == 0) tails += n - after_index;
      const double wanted_lse = attend(wanted, q + (got - out), &rows, &layer, i, h / group, list, n);
      compare("attend", got, lse[i * s->heads + h], wanted, wanted_lse, s->dim, i, h, near);
    }
    if (per_head) chosen /= group;
    if (i == 0 && rows.active[0])
      CHECK(counted[0] == sinks && counted[1] == chosen && counted[2] == tails, "attend counted %d %d %d rows, wanted %d %d %d", (int)counted[0], (int)counted[1], (int)counted[2], (int)sinks, (int)chosen, (int)tails);
  }
  free_all();
}

void test_attention(const rkv_cpu *cpu) {
  seed(5);
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
    step_case(cpu, &shapes[s], 1, 1, 0, -1, 1, 0);
    step_case(cpu, &shapes[s], 4, 70, 4, 20, 16, 0);
    step_case(cpu, &shapes[s], 3, 300, 16, 0, 400, 0);
    step_case(cpu, &shapes[s], 5, 1000, 16, 300, 64, 0);
    step_case(cpu, &shapes[s], 2, 777, 3, -1, 1000, 0);
    step_case(cpu, &shapes[s], 3, 260, 8, 700, 300, 0);                /* more places than rows */
    if (shapes[s].heads > shapes[s].kv_heads) step_case(cpu, &shapes[s], 4, 400, 16, 130, 40, 1);
  }
}
