/* decoder_test.c: rotations, the greedy choice, advance. */
#include "native.h"

static void rotations_case(const rkv_cpu *cpu, int32_t half, int32_t count) {
  float *out = floats((size_t)count * 2 * (size_t)half), *frequencies = floats((size_t)half);
  int32_t *position = ints((size_t)count);
  for (int32_t i = 0; i < count; i++) position[i] = i * 9973;
  for (int32_t k = 0; k < half; k++) frequencies[k] = (float)pow(10000, -(double)k / half);
  const rkv_rotations_args args = {.rotations = VIEW(out, RKV_F32, count, 2, half), .position = VIEW(position, RKV_I32, count),
                                   .frequencies = VIEW(frequencies, RKV_F32, half), .factor = 1.25f, .count = count};
  run_op(cpu, RKV_OP_rotations, &args, 2);
  for (int32_t i = 0; i < count; i++)
    for (int32_t k = 0; k < half; k++) {
      const double angle = (double)position[i] * (double)frequencies[k];
      const float *row = out + (size_t)i * 2 * (size_t)half;
      CHECK(fabs((double)row[k] - 1.25 * cos(angle)) < 1e-7 && fabs((double)row[half + k] - 1.25 * sin(angle)) < 1e-7, "rotation[%d, %d]", i, k);
    }
  free_all();
}

static void greedy_case(const rkv_cpu *cpu, int32_t vocab) {
  enum { ROWS = 7 };
  float *logits = normals(ROWS * (size_t)vocab), *logprob = floats(ROWS);
  int32_t *token = ints(ROWS), *active = ints(ROWS);
  for (int32_t i = 0; i < ROWS; i++) active[i] = i != 2, token[i] = -7;
  for (int32_t k = 0; k < vocab; k++) {
    logits[vocab + k] = 2;                                            /* all equal: the lowest id */
    logits[3 * vocab + k] = NAN;                                      /* no number at all */
    if (k % 3 == 0) logits[4 * vocab + k] = NAN;
    if (k != vocab - 1) logits[5 * vocab + k] = -INFINITY;
  }
  const rkv_greedy_args args = {.token = VIEW(token, RKV_I32, ROWS), .logprob = VIEW(logprob, RKV_F32, ROWS), .logits = VIEW(logits, RKV_F32, ROWS, vocab),
                                .active = VIEW(active, RKV_I32, ROWS), .first = 0, .count = ROWS};
  run_op(cpu, RKV_OP_greedy, &args, 2);
  for (int32_t i = 0; i < ROWS; i++) {
    const float *row = logits + (size_t)i * (size_t)vocab;
    int32_t best = -1;
    double sum = 0;
    for (int32_t k = 0; k < vocab; k++)
      if (row[k] == row[k] && (best < 0 || row[k] > row[best])) best = k;
    for (int32_t k = 0; k < vocab && best >= 0; k++)
      if (row[k] == row[k]) sum += exp((double)row[k] - (double)row[best]);
    if (!active[i]) CHECK(token[i] == -7, "row %d is not active, yet it was written", i);
    else {
      CHECK(token[i] == best, "vocab %d row %d: token %d, wanted %d", vocab, i, token[i], best);
      CHECK(best < 0 ? logprob[i] != logprob[i] : fabs((double)logprob[i] + log(sum)) <= 2e-6 * (1 + log(sum)), "vocab %d row %d: logprob %g, wanted %g", vocab, i, (double)logprob[i], -log(sum));
    }
  }
  free_all();
}

static void advance_case(const rkv_cpu *cpu) {
  int32_t *position = ints(3), *active = ints(3);
  position[0] = 5, position[1] = 9, position[2] = 1, active[0] = active[2] = 1;
  const rkv_advance_args args = {.position = VIEW(position, RKV_I32, 3), .active = VIEW(active, RKV_I32, 3)};
  run_op(cpu, RKV_OP_advance, &args, 0);
  CHECK(position[0] == 6 && position[1] == 9 && position[2] == 2, "advance gave %d %d %d", position[0], position[1], position[2]);
  free_all();
}

void test_decoder(const rkv_cpu *cpu) {
  seed(2);
  rotations_case(cpu, 16, 3);
  rotations_case(cpu, 40, 33);
  for (int32_t vocab = 4; vocab < 40; vocab++) greedy_case(cpu, vocab);
  greedy_case(cpu, 2048);
  greedy_case(cpu, 50003);
  advance_case(cpu);
}
