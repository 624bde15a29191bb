/* layer_test.c: the two halves of a decoder layer. */
#include "native.h"

typedef struct {
  int32_t hidden, intermediate, heads, kv_heads, dim, rope, type, biases, norms, key_dtype, value_dtype;
} shape;

typedef struct {
  weight attn_norm, q, k, v, o, q_bias, k_bias, v_bias, o_bias, q_norm, k_norm, ffn_norm, gate, up, down;
  rkv_layer_data data;
  const rkv_cpu *cpu;
} layer;

static void make_layer(layer *l, const rkv_cpu *cpu, const shape *s) {
  const int32_t wide = s->heads * s->dim, narrow = s->kv_heads * s->dim;
  const float size = 1 / sqrtf((float)s->hidden);
  memset(l, 0, sizeof *l);
  l->cpu = cpu;
#define VECTOR(name, n) (l->name = random_weight(cpu, RKV_WEIGHT_F32, 1, n, 1, 0), l->data.name = &l->name.data)
#define MATRIX(name, rows, cols) MATRIX_OF(s->type, name, rows, cols)
#define MATRIX_OF(type, name, rows, cols) (l->name = random_weight(cpu, type, rows, cols, size, 0), l->data.name = &l->name.data)
  VECTOR(attn_norm, s->hidden), VECTOR(ffn_norm, s->hidden);
  MATRIX(q, wide, s->hidden), MATRIX(k, narrow, s->hidden), MATRIX(v, narrow, s->hidden), MATRIX(o, s->hidden, wide);
  MATRIX(gate, s->intermediate, s->hidden), MATRIX(up, s->intermediate, s->hidden), MATRIX(down, s->hidden, s->intermediate);
  if (s->type == RKV_WEIGHT_Q4_K) {                                    /* mixed, as files are */
    MATRIX_OF(RKV_WEIGHT_Q6_K, v, narrow, s->hidden), MATRIX_OF(RKV_WEIGHT_Q6_K, up, s->intermediate, s->hidden), MATRIX_OF(RKV_WEIGHT_Q8_0, down, s->hidden, s->intermediate);
  }
  if (s->biases) VECTOR(q_bias, wide), VECTOR(k_bias, narrow), VECTOR(v_bias, narrow), VECTOR(o_bias, s->hidden);
  if (s->norms) VECTOR(q_norm, s->dim), VECTOR(k_norm, s->dim);
  l->data.heads = s->heads, l->data.kv_heads = s->kv_heads, l->data.head_dim = s->dim, l->data.rope_dim = s->rope;
  l->data.hidden = s->hidden, l->data.intermediate = s->intermediate, l->data.eps = 1e-5f, l->data.scale = 0.2f;
}

/* y[rows] = W x + bias. Quantised weights meet x in bytes, 32 k at a time; 16-bit ones as BF16 where there are such products. */
static void product(double *y, const layer *l, const weight *w, const weight *bias, const double *x) {
  const taking as = taken_by(l->cpu, w->data.type);
  double largest = 0;
  for (int32_t r = 0; r < w->data.rows; r++) y[r] = bias->value ? bias->value[r] : 0;
  for (int32_t k = 0; k < w->data.cols; k++) {
    double meant = as == AS_BF16 ? as_bf16(x[k]) : x[k];
    if (as == AS_BYTES) {
      if (k % 32 == 0) largest = 0;
      for (int32_t i = k; k % 32 == 0 && i < k + 32; i++) largest = fmax(largest, fabs(x[i]));
      meant = rint(x[k] / largest * 127) * largest / 127;
    }
    for (int32_t r = 0; r < w->data.rows; r++) {
      const double value = w->value[(size_t)r * (size_t)w->data.cols + (size_t)k];
      y[r] += meant * (as == AS_BF16 ? as_bf16(value) : value);
    }
  }
}

static void norm(double *y, const double *x, const weight *w, int32_t n) {
  double sum = 0;
  for (int32_t k = 0; k < n; k++) sum += x[k] * x[k];
  for (int32_t k = 0; k < n; k++) y[k] = x[k] / sqrt(sum / n + 1e-5) * w->value[k];
}

/* Norm per head where there is one, then rotation. */
static void finish(double *x, const weight *w, const float *rotation, int32_t heads, const shape *s) {
  for (int32_t h = 0; h < heads; h++, x += s->dim) {
    if (w && w->value) norm(x, x, w, s->dim);
    for (int32_t i = 0; i < s->rope / 2; i++) {
      const double a = x[i], b = x[i + s->rope / 2], c = (double)rotation[i], d = (double)rotation[s->rope / 2 + i];
      x[i] = a * c - b * d;
      x[i + s->rope / 2] = b * c + a * d;
    }
  }
}

/* A byte or a BF16 that rounding leaves in doubt moves an output by a step of x, and what comes after it a little: linear_test.c bounds that output by
 * output, here it is room enough to tell a wrong row from a right one. */
static double slack = 1e-5;
static int near(double got, double wanted) { return fabs(got - wanted) <= slack * (1 + fabs(wanted)); }

static int row_near(const void *row, int32_t dtype, int32_t dim, const double *wanted) {
  double largest = 0;
  for (int32_t i = 0; i < dim; i++) largest = fmax(largest, fabs(wanted[i]));
  for (int32_t i = 0; i < dim; i++) {
    const double step = dtype == RKV_F32 ? 0 : dtype == RKV_Q8 ? largest / 253 : fabs(wanted[i]) / (dtype == RKV_F16 ? 2047 : 255) + 1e-7;
    if (fabs(row_value(row, dtype, dim, i) - wanted[i]) > step + slack * (1 + fabs(wanted[i]))) return 0;
  }
  return 1;
}

/* One call of attn_in: slot >= 0 is a chunk. Where row i went is checked against f64; q comes back. */
static void attn_in_case(const rkv_cpu *cpu, const shape *s, int32_t slot, int32_t count) {
  layer l;
  make_layer(&l, cpu, s);
  const int32_t slots = slot == RKV_STEP ? count : 3, capacity = 11 + count, wide = s->heads * s->dim, narrow = s->kv_heads * s->dim;
  rkv_rows_data rows = make_rows(slots, s->kv_heads, capacity, s->dim, s->key_dtype, s->value_dtype);
  float *x = normals((size_t)count * (size_t)s->hidden), *rotations = normals((size_t)count * (size_t)s->rope), *q = floats((size_t)count * (size_t)wide);
  int32_t *position = ints((size_t)count), begin[256];
  for (int32_t i = 0; i < count; i++) position[i] = 1000 + i;
  for (int32_t i = 0; i < slots; i++) begin[i] = rows.row_end[i] = i % 11, ((int32_t *)rows.active)[i] = slot == RKV_STEP ? i % 4 != 1 : 1;
  rkv_attn_in_args args = {.q = VIEW(q, RKV_F32, count, s->heads, s->dim), .rows = &rows, .x = VIEW(x, RKV_F32, count, s->hidden), .layer = &l.data,
    .rotations = VIEW(rotations, RKV_F32, count, 2, s->rope / 2), .position = VIEW(position, RKV_I32, count),
    .work = VIEW(floats((size_t)count * (size_t)(s->hidden + 2 * narrow)), RKV_F32, count, s->hidden + 2 * narrow), .slot = slot, .count = count};
  const int32_t code = run_op(cpu, RKV_OP_attn_in, &args, 2);
  CHECK(code == RKV_DONE, "attn_in failed: %d", code);
  double *wx = bytes((size_t)s->hidden * 8), *wq = bytes((size_t)wide * 8), *wk = bytes((size_t)narrow * 8), *wv = bytes((size_t)narrow * 8);
  for (int32_t i = 0; i < count; i++) {
    const int32_t to_slot = slot == RKV_STEP ? i : slot, to = slot == RKV_STEP ? begin[i] : begin[slot] + i;
    float *got = q + (size_t)i * (size_t)wide;
    if (!rows.active[to_slot]) {
      CHECK(got[0] != got[0] && rows.row_end[i] == begin[i], "slot %d is not active, yet it was served", i);
      continue;
    }
    for (int32_t k = 0; k < s->hidden; k++) wx[k] = (double)x[(size_t)i * (size_t)s->hidden + (size_t)k];
    norm(wx, wx, &l.attn_norm, s->hidden);
    product(wq, &l, &l.q, &l.q_bias, wx), product(wk, &l, &l.k, &l.k_bias, wx), product(wv, &l, &l.v, &l.v_bias, wx);
    finish(wq, &l.q_norm, rotations + (size_t)i * (size_t)s->rope, s->heads, s);
    finish(wk, &l.k_norm, rotations + (size_t)i * (size_t)s->rope, s->kv_heads, s);
    int good = 1;
    for (int32_t k = 0; k < wide; k++) good &= near((double)got[k], wq[k]);
    CHECK(good, "attn_in: q of row %d of %d is off", i, count);
    for (int32_t h = 0; h < s->kv_heads; h++) {
      CHECK(row_near(row_of(&rows, &rows.keys, to_slot, h, to), s->key_dtype, s->dim, wk + h * s->dim), "attn_in: key of row %d head %d is off", i, h);
      CHECK(row_near(row_of(&rows, &rows.values, to_slot, h, to), s->value_dtype, s->dim, wv + h * s->dim), "attn_in: value of row %d head %d is off", i, h);
      CHECK(rows.position[(to_slot * s->kv_heads + h) * capacity + to] == position[i], "attn_in: position of row %d is off", i);
    }
    CHECK(rows.row_end[to_slot] == (slot == RKV_STEP ? begin[i] + 1 : begin[slot] + count), "attn_in: rowEnd is %d", rows.row_end[to_slot]);
  }
  if (slot != RKV_STEP) {                                             /* the same rows, one at a time, give the same bits */
    rkv_rows_data other = make_rows(slots, s->kv_heads, capacity, s->dim, s->key_dtype, s->value_dtype);
    float *q1 = floats((size_t)count * (size_t)wide);
    other.row_end[slot] = begin[slot];
    args.rows = &other, args.count = 1;
    for (int32_t i = 0; i < count; i++) {
      args.q.data = q1 + (size_t)i * (size_t)wide, args.x.data = x + (size_t)i * (size_t)s->hidden;
      args.rotations.data = rotations + (size_t)i * (size_t)s->rope, args.position.data = position + i;
      run_op(cpu, RKV_OP_attn_in, &args, 0);
    }
    CHECK(same(q, q1, (size_t)count * (size_t)wide), "attn_in: a chunk of %d gives other bits than %d of one", count, count);
    const size_t plane = (size_t)slots * (size_t)s->kv_heads * (size_t)capacity;
    CHECK(memcmp(rows.keys.data, other.keys.data, plane * rkv_row_bytes(s->key_dtype, s->dim)) == 0, "attn_in: a chunk of %d writes other keys", count);
    CHECK(memcmp(rows.values.data, other.values.data, plane * rkv_row_bytes(s->value_dtype, s->dim)) == 0, "attn_in: a chunk of %d writes other values", count);
    args.count = count, other.row_end[slot] = capacity - count + 1;
    args.q.data = q1, args.x.data = x, args.rotations.data = rotations, args.position.data = position;
    CHECK(run_op(cpu, RKV_OP_attn_in, &args, 0) < 0 && other.row_end[slot] == capacity, "attn_in: a row past capacity went unseen");
  }
  free_all();
}

static void attn_out_case(const rkv_cpu *cpu, const shape *s, int32_t count) {
  layer l;
  make_layer(&l, cpu, s);
  const int32_t wide = s->heads * s->dim, work = s->hidden + 2 * s->intermediate;
  float *x = normals((size_t)count * (size_t)s->hidden), *attended = normals((size_t)count * (size_t)wide), *before = floats((size_t)count * (size_t)s->hidden);
  float *alone = floats((size_t)count * (size_t)s->hidden);
  int32_t *active = ints((size_t)count);
  for (int32_t i = 0; i < count; i++) active[i] = count == 1 || i % 4 != 1;
  memcpy(before, x, (size_t)count * (size_t)s->hidden * 4);
  memcpy(alone, x, (size_t)count * (size_t)s->hidden * 4);
  rkv_attn_out_args args = {.x = VIEW(x, RKV_F32, count, s->hidden), .attended = VIEW(attended, RKV_F32, count, s->heads, s->dim), .layer = &l.data,
    .active = VIEW(active, RKV_I32, count), .work = VIEW(floats((size_t)count * (size_t)work), RKV_F32, count, work), .count = count};
  run_op(cpu, RKV_OP_attn_out, &args, 2);
  args.count = 1, args.active.data = NULL;
  for (int32_t i = 0; i < count; i++) {
    args.x.data = alone + (size_t)i * (size_t)s->hidden, args.attended.data = attended + (size_t)i * (size_t)wide;
    if (active[i]) run_op(cpu, RKV_OP_attn_out, &args, 1);
  }
  CHECK(same(x, alone, (size_t)count * (size_t)s->hidden), "attn_out: %d rows give other bits than one by one", count);
  double *a = bytes((size_t)wide * 8), *y = bytes((size_t)s->hidden * 8), *h = bytes((size_t)s->hidden * 8), *gate = bytes((size_t)s->intermediate * 8), *up = bytes((size_t)s->intermediate * 8);
  const weight no_bias = {.value = NULL};
  for (int32_t i = 0; i < count; i++) {
    const float *got = x + (size_t)i * (size_t)s->hidden, *was = before + (size_t)i * (size_t)s->hidden;
    if (!active[i]) continue;                                         /* compared above: alone was not run for it */
    for (int32_t k = 0; k < wide; k++) a[k] = (double)attended[(size_t)i * (size_t)wide + (size_t)k];
    product(y, &l, &l.o, &l.o_bias, a);
    for (int32_t k = 0; k < s->hidden; k++) y[k] += (double)was[k];
    norm(h, y, &l.ffn_norm, s->hidden);
    product(gate, &l, &l.gate, &no_bias, h), product(up, &l, &l.up, &no_bias, h);
    for (int32_t k = 0; k < s->intermediate; k++) gate[k] = gate[k] / (1 + exp(-gate[k])) * up[k];
    product(h, &l, &l.down, &no_bias, gate);
    int good = 1;
    for (int32_t k = 0; k < s->hidden; k++) good &= near((double)got[k], y[k] + h[k]);
    CHECK(good, "attn_out: row %d of %d is off", i, count);
  }
  free_all();
}

void test_layer(const rkv_cpu *cpu) {
  static const shape shapes[] = {
    {192, 512, 6, 3, 32, 32, RKV_WEIGHT_BF16, 0, 0, RKV_F32, RKV_F32}, {96, 130, 4, 2, 48, 48, RKV_WEIGHT_F32, 1, 0, RKV_F16, RKV_BF16},
    {64, 97, 3, 1, 64, 32, RKV_WEIGHT_F16, 0, 1, RKV_Q8, RKV_Q8}, {130, 64, 2, 2, 20, 12, RKV_WEIGHT_BF16, 1, 1, RKV_BF16, RKV_F16},
    {128, 200, 8, 1, 80, 80, RKV_WEIGHT_F32, 0, 0, RKV_Q8, RKV_F16},
    {256, 256, 4, 2, 64, 64, RKV_WEIGHT_Q4_K, 1, 0, RKV_F32, RKV_F32},
  };
  static const int32_t counts[] = {1, 2, 3, 5, 13, 70, 140};
  seed(3);
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
      slack = taken_by(cpu, shapes[s].type) == AS_F32 ? 1e-5 : 2e-2;
      attn_in_case(cpu, &shapes[s], 1, counts[c]);
      attn_in_case(cpu, &shapes[s], RKV_STEP, counts[c]);
      attn_out_case(cpu, &shapes[s], counts[c]);
    }
}
