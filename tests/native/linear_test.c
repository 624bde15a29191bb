/* linear_test.c: packed weights and their products, through the ops pack, embed and head. */
#include "native.h"

/* logits of a head whose norm is 1 / rms, in f64; bound[] = how far f32 rounding may be off. Quantised weights meet x as bytes, and 16-bit ones
 * as BF16 where there are such products: what these stand for is multiplied exactly, so only an x that rounding leaves in doubt between two of
 * them (it comes through a norm in f32) widens the bound. far[] = what is left of the error that bytes or BF16 may bring at all. */
static void expect_logits(double *logits, double *bound, double *far, const float *x, const weight *norm, const weight *output, double eps, taking as) {
  const int32_t hidden = output->data.cols, vocab = output->data.rows;
  double sum = 0, *value = bytes((size_t)hidden * 8), *meant = bytes((size_t)hidden * 8), *doubt = bytes((size_t)hidden * 8), *half_step = bytes((size_t)hidden * 8);
  for (int32_t k = 0; k < hidden; k++) sum += (double)x[k] * (double)x[k];
  const double factor = 1 / sqrt(sum / hidden + eps);
  for (int32_t k = 0; k < hidden; k++) value[k] = meant[k] = (double)x[k] * factor * norm->value[k], doubt[k] = half_step[k] = 0;
  for (int32_t k = 0; as == AS_BF16 && k < hidden; k++) {
    const double step = ldexp(1, ilogb(value[k]) - 7), q = fabs(value[k]) / step;
    meant[k] = as_bf16(value[k]), half_step[k] = fabs(value[k]) / (output->data.type == RKV_WEIGHT_F16 ? 128 : 256);
    if (fabs(q - floor(q) - 0.5) < 3e-4) doubt[k] = step;
  }
  for (int32_t k = 0; as == AS_BYTES && k < hidden; k++) {
    double largest = 0;
    for (int32_t i = k / 32 * 32; i < k / 32 * 32 + 32; i++) largest = fmax(largest, fabs(value[i]));
    const double q = value[k] / largest * 127, step = largest / 127;
    meant[k] = rint(q) * step, half_step[k] = step / 2;
    if (fabs(fabs(q - floor(q)) - 0.5) < 1e-4) doubt[k] = step;
  }
  for (int32_t r = 0; r < vocab; r++) {
    const double *w = output->value + (size_t)r * (size_t)hidden;
    double dot = 0, size = 0, in_doubt = 0, most = 0;
    for (int32_t k = 0; k < hidden; k++) {
      const double counts = as == AS_BF16 ? as_bf16(w[k]) : w[k];
      dot += meant[k] * counts, size += fabs(meant[k] * counts), in_doubt += doubt[k] * fabs(counts), most += half_step[k] * fabs(w[k]);
    }
    logits[r] = dot;
    bound[r] = size * 6e-7 + in_doubt;                                /* some ten roundings of 2^-24 that do not all point one way */
    far[r] = most;
    dot = 0;
    for (int32_t k = 0; k < hidden; k++) dot += value[k] * w[k];
    far[r] += size * 6e-7 - fabs(dot - logits[r]);
  }
}

static void head_case(const rkv_cpu *cpu, int32_t type, int32_t hidden, int32_t vocab, int32_t count) {
  const weight norm = random_weight(cpu, RKV_WEIGHT_F32, 1, hidden, 1, 0), output = random_weight(cpu, type, vocab, hidden, 1, 0);
  const rkv_model_data model = {&output.data, &norm.data, &output.data, hidden, vocab, 1e-5f};
  const int32_t first = count > 2 ? 1 : 0, n = count + first;
  float *x = normals((size_t)n * (size_t)hidden), *logits = floats((size_t)n * (size_t)vocab), *alone = floats((size_t)n * (size_t)vocab);
  float *again = floats((size_t)n * (size_t)vocab);
  int32_t *active = ints((size_t)n);
  double *wanted = bytes((size_t)vocab * 8), *bound = bytes((size_t)vocab * 8), *far = bytes((size_t)vocab * 8);
  for (int32_t i = 0; i < n; i++) active[i] = count < 3 || i % 5 != 3;
  rkv_head_args args = {.logits = VIEW(logits, RKV_F32, n, vocab), .x = VIEW(x, RKV_F32, n, hidden), .model = &model, .active = VIEW(active, RKV_I32, n),
                        .work = VIEW(floats((size_t)count * (size_t)hidden), RKV_F32, count, hidden), .first = first, .count = count};
  run_op(cpu, RKV_OP_head, &args, 0);
  args.logits.data = again;
  run_op(cpu, RKV_OP_head, &args, 2);
  CHECK(same(logits, again, (size_t)n * (size_t)vocab), "type %d hidden %d vocab %d count %d: two threads give other bits", type, hidden, vocab, count);
  args.logits.data = alone;
  args.count = 1;
  for (args.first = 0; args.first < n; args.first++) run_op(cpu, RKV_OP_head, &args, 1);
  for (int32_t i = 0; i < n; i++) {
    const float *row = logits + (size_t)i * (size_t)vocab;
    const int32_t made = i >= first && active[i];
    uint32_t word;
    memcpy(&word, row, 4);
    if (!made) {
      CHECK(word == 0xffffffff, "row %d is not in the call, yet it was written", i);
      continue;
    }
    CHECK(same(row, alone + (size_t)i * (size_t)vocab, (size_t)vocab), "type %d hidden %d vocab %d: row %d of %d has other bits than alone", type, hidden, vocab, i, count);
    expect_logits(wanted, bound, far, x + (size_t)i * (size_t)hidden, &norm, &output, 1e-5, taken_by(cpu, type));
    for (int32_t r = 0; r < vocab; r++) CHECK(far[r] >= 0, "type %d: rounding x brings a larger error than linear.h says", type);
    for (int32_t r = 0; r < vocab; r++)
      CHECK(fabs((double)row[r] - wanted[r]) <= bound[r], "type %d hidden %d vocab %d count %d: logit[%d, %d] is %g, wanted %g", type, hidden, vocab, count, i, r, (double)row[r], wanted[r]);
  }
  free_all();
}

/* Embedding rows are the weights themselves, so they show what packing did. */
static void embed_case(const rkv_cpu *cpu, int32_t type, int32_t hidden, int32_t vocab, int32_t rotated) {
  const weight embed = random_weight(cpu, type, vocab, hidden, 1, rotated);
  const rkv_model_data model = {&embed.data, NULL, &embed.data, hidden, vocab, 0};
  const int32_t n = vocab + 2;
  int32_t *token = ints((size_t)n), *active = ints((size_t)n);
  float *x = floats((size_t)n * (size_t)hidden);
  for (int32_t i = 0; i < n; i++) token[i] = i == vocab ? -1 : i, active[i] = i % 7 != 2;
  rkv_embed_args args = {.x = VIEW(x, RKV_F32, n, hidden), .model = &model, .token = VIEW(token, RKV_I32, n), .active = VIEW(active, RKV_I32, n), .count = n};
  run_op(cpu, RKV_OP_embed, &args, 2);
  for (int32_t i = 0; i < n; i++)
    for (int32_t k = 0; k < hidden; k++) {
      const float value = x[(size_t)i * (size_t)hidden + (size_t)k];
      if (i >= vocab || !active[i]) CHECK(value != value, "row %d holds %g, wanted NaN", i, (double)value);
      else CHECK(value == (float)embed.value[(size_t)i * (size_t)hidden + (size_t)k], "type %d: embed[%d, %d] is %g", type, i, k, (double)value);
    }
  free_all();
}

/* A vector weight is kept as f32, whatever the file holds. */
static void vector_case(const rkv_cpu *cpu, int32_t type, int32_t cols, int32_t rotated) {
  const weight w = random_weight(cpu, type, 1, cols, 1, rotated);
  for (int32_t k = 0; k < cols; k++) CHECK(((const float *)w.data.packed)[k] == (float)w.value[k], "type %d: vector[%d] is %g, wanted %g", type, k, (double)((const float *)w.data.packed)[k], w.value[k]);
  free_all();
}

void test_linear(const rkv_cpu *cpu) {
  static const int32_t shapes[][3] = {{192, 64, 1}, {192, 33, 2}, {33, 70, 3}, {1, 31, 5}, {200, 97, 4}, {257, 130, 17}, {128, 160, 70}, {64, 40, 131}, {129, 65, 12}, {384, 300, 6}};
  static const int32_t block[] = {1, 1, 1, 32, 32, 256, 256, 256, 32, 32, 32}, block_bytes[] = {4, 2, 2, 34, 18, 144, 176, 210, 24, 24, 24};
  seed(1);
  for (int32_t type = RKV_WEIGHT_F32; type < RKV_WEIGHT_TYPES; type++) {
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) head_case(cpu, type, (shapes[s][0] + block[type] - 1) / block[type] * block[type], shapes[s][1], shapes[s][2]);
    embed_case(cpu, type, block[type] == 1 ? 37 : block[type] * 3, 70, 0);
    embed_case(cpu, type, block[type] == 1 ? 64 : block[type], 96, 3);
    vector_case(cpu, type, block[type] == 1 ? 5001 : 5120, 0);
    vector_case(cpu, type, 5120, 8);
    if (block[type] > 1) CHECK(cpu->packed_bytes(type, 64, block[type] * 3 - 16) == 0, "type %d: a broken block was taken", type);
    CHECK(cpu->packed_bytes(type, 64, 512) == (size_t)(64 * 512 / block[type] * block_bytes[type]), "type %d: a packed weight has another size", type);
  }
  CHECK(cpu->packed_bytes(RKV_WEIGHT_TYPES, 64, 512) == 0, "an unknown type was taken");
}
