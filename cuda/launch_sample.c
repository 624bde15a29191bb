/* launch_sample.c: from logits to the next token, as launches: a block has a row. */
#include "cuda.h"

void rkv_cuda_greedy(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_greedy_args a = *(const rkv_greedy_args *)args;
  (void)arena;
  LAUNCH(c, greedy, a.count, 1, 1, 1024, 0, &a);
}

void rkv_cuda_tally(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_tally_args a = *(const rkv_tally_args *)args;
  (void)arena;
  LAUNCH(c, tally, 1, 1, 1, 64, 0, &a);
}

void rkv_cuda_penalize(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_penalize_args a = *(const rkv_penalize_args *)args;
  (void)arena;
  LAUNCH(c, penalize, a.count, 1, 1, 1024, 0, &a);
}

void rkv_cuda_sample(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_sample_args a = *(const rkv_sample_args *)args;
  (void)arena;
  LAUNCH(c, sample, a.count, 1, 1, 1024, 0, &a);
}

void rkv_cuda_likeliest(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_likeliest_args a = *(const rkv_likeliest_args *)args;
  (void)arena;
  LAUNCH(c, likeliest, a.count, 1, 1, 1024, 0, &a);
}
