/* fuzz_ops.c: every op, called as it should be and then with arguments that were changed at random: other handles, stale ones, numbers from
 * the edges. A call may be taken, and then runs, or be refused with a sentence; nothing else. */
#include "fuzz.h"

enum { S = 2, K = 2, H = 4, C = 600, D = 16, HIDDEN = 32, WIDE = 48, VOCAB = 40, M = 12, PAGES = 38, B = 64, N = 32, R = 8, BEST = 6, WORK = 1 << 16 };
enum { SAMPLING = RKV_SAMPLING };

/* Every tensor of the world: name, dtype, shape. Of i32, `most` bounds what it is filled with. */
#define TENSORS(X)                                                                                                                       \
  X(rotations, F32, 0, N, 2, D / 2) X(positions, I32, C, N) X(frequencies, F32, 0, D / 2) X(x, F32, 0, N, HIDDEN) X(ids, I32, VOCAB, N) \
  X(q, F32, 0, N, H, D) X(attended, F32, 0, N, H, D) X(lse, F32, 0, N, H) X(work, F32, 0, WORK) X(logits, F32, 0, N, VOCAB)             \
  X(logprob, F32, 0, N) X(position, I32, C, S) X(active, I32, 2, S) X(token, I32, VOCAB, S) X(counts, I32, 9, S, VOCAB)                  \
  X(slot_logits, F32, 0, S, VOCAB) X(adjusted, F32, 0, S, VOCAB) X(logit_bias, F32, 0, S, VOCAB) X(options, F32, 0, S, SAMPLING)         \
  X(slot_logprob, F32, 0, S) X(tokens, I32, VOCAB, S, 5) X(logprobs, F32, 0, S, 5) X(step_attended, F32, 0, S, H, D)                     \
  X(step_lse, F32, 0, S, H) X(step_q, F32, 0, S, H, D) X(index, I32, C, S, K, B) X(head_index, I32, C, S, H, B)                          \
  X(centroids, F32, 0, S, K, M, D) X(means, F32, 0, S, K, M, D) X(bias, F32, 0, S, K, M) X(labels, I32, M, S, K, C) X(moved, I32, 2, S, K) \
  X(order, I32, C, S, K, C) X(offsets, I32, 0, S, K, M + 1) X(radius, F32, 0, S, K, M) X(scores, F32, 0, S, K, M)                        \
  X(head_scores, F32, 0, S, H, M) X(clusters, I32, M, S) X(best, I32, M, S, K, BEST) X(bounds, F32, 0, S, K, PAGES, 2, D)                \
  X(page_scores, F32, 0, S, K, PAGES) X(gathered, F32, 0, S, K, B, D) X(mass, F32, 0, S, K, C) X(rates, F32, 0, S, K, C)                 \
  X(keep, I32, 0, S, K, C) X(keep_shared, I32, 0, S, 1, N) X(latents, F16, 0, S, K, C, R) X(basis, F32, 0, 1, K, D, R)                   \
  X(index_scores, F32, 0, S, K, B) X(channel_mass, F32, 0, S, K, R) X(bases, F32, 0, S, K, D, R) X(channels, I32, R, S, K, R)            \
  X(keys, F32, 0, S, K, C, D) X(values, F32, 0, S, K, C, D) X(bytes, Q8, 0, S, K, C, D) X(row_position, I32, C, S, K, C)                 \
  X(row_end, I32, 0, 1, S) X(tail_begin, I32, 0, 1, S) X(counters, I32, 0, 1, S, 8) X(nothing, F32, 0, S, 0, D) X(tall, F32, 0, C, 1)

typedef struct {
#define X(name, ...) int32_t name;
  TENSORS(X)
#undef X
  int32_t rows, layer, model, bare, weight, norm, arena, other_arena, device, file, closed, tape;
} world;
#define HANDLES (int32_t)(sizeof(world) / sizeof(int32_t))
static world w;

/* Every op: its call, with a[] for handles and numbers, and the arguments that are right. */
#define OPS(X)                                                                                                                              \
  X(rkv_rotations(a[0], a[1], a[2], f, a[3]), w.rotations, w.positions, w.frequencies, N)                                                  \
  X(rkv_embed(a[0], a[1], a[2], a[3], a[4]), w.x, w.model, w.ids, 0, N)                                                                    \
  X(rkv_attn_in(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8]), w.q, w.rows, w.x, w.layer, w.rotations, w.positions, w.work, 0, 8) \
  X(rkv_queries(a[0], a[1], a[2], a[3], a[4], a[5], a[6]), w.q, w.x, w.layer, 0, w.rotations, w.work, 8)                                  \
  X(rkv_attn_out(a[0], a[1], a[2], a[3], a[4], a[5]), w.x, w.attended, w.layer, 0, w.work, 8)                                             \
  X(rkv_head(a[0], a[1], a[2], a[3], a[4], a[5], a[6]), w.logits, w.x, w.model, 0, w.work, 1, 4)                                          \
  X(rkv_greedy(a[0], a[1], a[2], a[3], a[4], a[5]), w.ids, w.logprob, w.logits, 0, 1, 4)                                                  \
  X(rkv_advance(a[0], a[1]), w.position, w.active)                                                                                         \
  X(rkv_tally(a[0], a[1], a[2]), w.counts, w.token, w.active)                                                                              \
  X(rkv_penalize(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]), w.adjusted, w.slot_logits, w.counts, w.logit_bias, w.active, w.options, 0, S) \
  X(rkv_sample(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8]), w.token, w.slot_logprob, w.slot_logits, w.adjusted, w.active, w.position, w.options, 0, S) \
  X(rkv_likeliest(a[0], a[1], a[2], a[3], a[4], a[5], a[6]), w.tokens, w.logprobs, w.slot_logits, w.active, w.options, 0, S)              \
  X(rkv_copy(a[0], a[1], a[2], a[3], a[4]), w.attended, 1, w.q, 2, 3)                                                                      \
  X(rkv_attend_chunk(a[0], a[1], a[2], a[3], a[4], a[5], a[6]), w.attended, w.lse, w.q, w.rows, w.bare, 0, 8)                             \
  X(rkv_attend(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]), w.step_attended, w.step_lse, w.step_q, w.rows, w.bare, w.index, w.work, 4) \
  X(rkv_attend_estimates(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8]), w.step_attended, w.step_lse, w.step_q, w.rows, w.bare, w.centroids, w.means, w.bias, w.work) \
  X(rkv_seed_centroids(a[0], a[1], a[2], a[3], a + 4), w.centroids, w.labels, w.moved, w.keys, 0, 4, 200, 1, 8)                           \
  X(rkv_assign(a[0], a[1], a[2], a[3], a[4], a + 5), w.labels, w.moved, w.keys, w.centroids, w.work, 0, 4, 200, 1, 8)                     \
  X(rkv_group(a[0], a[1], a[2], a[3], a + 4), w.order, w.offsets, w.labels, w.moved, 0, 4, 200, 1, 8)                                     \
  X(rkv_centroid_means(a[0], a[1], a[2], a[3], a[4], a + 5), w.centroids, w.keys, w.order, w.offsets, w.moved, 0, 4, 200, 1, 8)           \
  X(rkv_radius(a[0], a[1], a[2], a[3], a[4], a + 5), w.radius, w.keys, w.centroids, w.order, w.offsets, 0, 4, 200, 1, 8)                  \
  X(rkv_permute_rows(a[0], a[1], a[2], a + 3), w.bytes, w.order, w.work, 0, 4, 200, 1, 8)                                                 \
  X(rkv_centroid_scores(a[0], a[1], a[2], a[3], a[4], a[5], a[6], f, 0.3f), w.scores, w.step_q, w.centroids, w.radius, w.offsets, w.clusters, w.active) \
  X(rkv_topk(a[0], a[1], a[2]), w.best, w.scores, w.active)                                                                                \
  X(rkv_fill_budget(a[0], a[1], a[2], a[3]), w.index, w.best, w.offsets, w.active)                                                         \
  X(rkv_fill_whole(a[0], a[1], a[2], a[3], a[4], a[5]), w.index, w.bias, w.best, w.offsets, w.clusters, w.active)                         \
  X(rkv_page_bounds(a[0], a[1], a[2], a[3], a[4], a[5]), w.bounds, w.rows, 16, 0, 3, 300)                                                 \
  X(rkv_page_scores(a[0], a[1], a[2], a[3], f, a[4], a[5]), w.page_scores, w.step_q, w.bounds, w.rows, 16, 4)                             \
  X(rkv_gather_rows(a[0], a[1], a[2]), w.gathered, w.bytes, w.index)                                                                       \
  X(rkv_set_tail(a[0], a[1], a[2]), w.rows, 4, 32)                                                                                         \
  X(rkv_attention_mass(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8]), w.mass, w.q, w.lse, 0, w.rows, w.bare, 0, 8, 2)             \
  X(rkv_mass_rates(a[0], a[1], a[2], a[3]), w.rates, w.mass, w.rows, 0)                                                                    \
  X(rkv_pool_scores(a[0], a[1], a[2], a[3], a[4], a[5], a[6]), w.rates, w.mass, 0, 3, 300, 5, RKV_POOL_MAX)                               \
  X(rkv_keep(a[0], a[1], a[2], a[3], a[4], a[5], a[6]), w.keep, w.mass, 0, 4, 200, 30, 250)                                               \
  X(rkv_compact(a[0], a[1], a[2], a[3], a[4]), w.rows, w.mass, w.keep, 0, 60)                                                             \
  X(rkv_pick_rows(a[0], a[1], a[2], a[3]), w.x, w.keep_shared, 0, 8)                                                                       \
  X(rkv_evict(a[0], a[1], a[2], a[3], a[4], a[5]), w.rows, w.mass, w.rates, 4, 8, 50)                                                     \
  X(rkv_project_rows(a[0], a[1], a[2], a[3], a[4], a[5]), w.latents, w.rows, 0, w.basis, RKV_STEP, S)                                     \
  X(rkv_latent_scores(a[0], a[1], a[2], a[3], a[4], a[5], f, a[6]), w.rates, w.step_q, w.latents, w.basis, w.rotations, w.rows, 4)        \
  X(rkv_trim_index(a[0], a[1], a[2], f), w.index, w.index_scores, w.active)                                                                \
  X(rkv_reconstruct(a[0], a[1], a[2], a[3], a[4], a[5]), w.gathered, w.latents, w.basis, w.index, w.rotations, w.rows)                    \
  X(rkv_channel_mass(a[0], a[1], a[2], a[3], a[4]), w.channel_mass, w.q, w.basis, 0, 8)                                                   \
  X(rkv_pick_channels(a[0], a[1], a[2], a[3]), w.bases, w.basis, w.channels, 1)                                                            \
  X(rkv_commit(a[0], a[1], a[2]), w.keys, RKV_STEP, C)                                                                                     \
  X(rkv_release(a[0], a[1], a[2]), w.tall, 0, 400)                                                                                         \
  X(rkv_write(a[0], a[1], page, (uint32_t)a[2] & 4095), w.rates, 7, 64)                                                                    \
  X(rkv_tensor(a[0], a[1], a + 2, a[7]), w.other_arena, RKV_F32, 2, 3, 1, 1, 1, 2)                                                         \
  X(rkv_rows(a[0], a, a[1]), 0, 0)                                                                                                         \
  X(rkv_model(a[0], a[1], a[2], a[3], 1e-5), w.arena, w.weight, w.norm, 0)

static uint8_t page[4096];

static int32_t call(int32_t op, const int32_t *a, float f) {
  int32_t at = 0;
#define X(expression, ...) if (at++ == op) return expression;
  OPS(X)
#undef X
  return 0;
}

/* The right arguments of an op; their number, or 0 when there is no such op. */
static int32_t right_arguments(int32_t op, int32_t *a) {
  int32_t at = 0;
#define X(expression, ...)                                         \
  if (at++ == op) {                                                \
    const int32_t given[] = {__VA_ARGS__};                         \
    memcpy(a, given, sizeof given);                                \
    return (int32_t)(sizeof given / sizeof *given);                \
  }
  OPS(X)
#undef X
  return 0;
}

int32_t edge(void) {
  static const int32_t edges[] = {0, 1, -1, 2, 3, 7, 16, 255, 256, 257, 599, 600, 601, 4096, 65535, 65536, 1 << 20, 1 << 24, 1 << 30, INT32_MAX - 1, INT32_MAX, INT32_MIN, INT32_MIN + 1, -2, -600};
  return below(4) == 0 ? (int32_t)((uint32_t)below(INT32_MAX) << 1) : edges[below(sizeof edges / sizeof *edges)];
}

static int32_t any_handle(void) {
  int32_t handle;
  memcpy(&handle, (const char *)&w + sizeof handle * (size_t)below(HANDLES), sizeof handle);
  return handle;
}

/* ---- the world ---------------------------------------------------------------------------------------------------------------------------- */

static void fill_i32(int32_t handle, size_t n, int32_t most, int32_t ascending) {
  int32_t *data = malloc(n * 4);
  for (size_t i = 0; i < n; i++) data[i] = ascending ? (int32_t)(i % (size_t)ascending) * most : below(most);
  rkv_write(handle, 0, (const uint8_t *)data, (uint32_t)n * 4);
  free(data);
}

static void fill(void) {
  int32_t handle, dtype, most;
  size_t n;
#define X(name, type, bound, ...)                                                                                                                         \
  handle = w.name, dtype = RKV_##type, most = bound, n = 1;                                                                                               \
  for (size_t i = 0; i < sizeof((int32_t[]){__VA_ARGS__}) / 4; i++) n *= (size_t)((const int32_t[]){__VA_ARGS__})[i];                                    \
  if (dtype == RKV_I32 && most > 0) fill_i32(handle, n, most, 0);                                                                                         \
  if (dtype == RKV_F32 && n > 0) {                                                                                                                        \
    float *data = malloc(n * 4);                                                                                                                          \
    for (size_t i = 0; i < n; i++) data[i] = below(500) == 0 ? NAN : normal();                                                                            \
    rkv_write(handle, 0, (const uint8_t *)data, (uint32_t)n * 4);                                                                                         \
    free(data);                                                                                                                                           \
  }
  TENSORS(X)
#undef X
  fill_i32(w.offsets, S * K * (M + 1), 20, M + 1);
  fill_i32(w.keep, S * K * C, 1, C);
  fill_i32(w.keep_shared, S * N, 1, N);
  const int32_t ends[S] = {300, 480}, tails[S] = {280, 0};
  rkv_write(w.row_end, 0, (const uint8_t *)ends, sizeof ends);
  rkv_write(w.tail_begin, 0, (const uint8_t *)tails, sizeof tails);
}

static void make_world(int32_t isa, const char *path) {
  w.device = rkv_open(RKV_CPU, 3, isa);
  w.arena = rkv_arena(w.device, (int64_t)64 << 20);
  w.other_arena = rkv_arena(w.device, (int64_t)1 << 20);
  w.file = rkv_file((const uint8_t *)path, (uint32_t)strlen(path));
#define X(name, type, bound, ...) w.name = rkv_tensor(w.arena, RKV_##type, (const int32_t[]){__VA_ARGS__}, sizeof((int32_t[]){__VA_ARGS__}) / 4);
  TENSORS(X)
#undef X
  const int32_t shapes[15][2] = {{1, HIDDEN}, {H * D, HIDDEN}, {K * D, HIDDEN}, {K * D, HIDDEN}, {HIDDEN, H * D}, {1, H * D}, {1, K * D}, {1, K * D}, {1, HIDDEN},
                                 {1, D}, {1, D}, {1, HIDDEN}, {WIDE, HIDDEN}, {WIDE, HIDDEN}, {HIDDEN, WIDE}};
  int32_t weights[15];
  for (int32_t i = 0; i < 15; i++) weights[i] = rkv_weight(w.arena, w.file, 0, i == 1 ? RKV_WEIGHT_Q8_0 : i == 12 ? RKV_WEIGHT_Q4_0 : RKV_WEIGHT_F16, shapes[i][0], shapes[i][1], 0);
  const double numbers[3] = {1e-5, 0.25, 0};
  w.layer = rkv_layer(w.arena, weights, (const int32_t[]){H, K, D, 0, D}, numbers);
  w.bare = rkv_layer(w.arena, (const int32_t[15]){0}, (const int32_t[]){H, K, D, 0, D}, numbers);
  w.weight = rkv_weight(w.arena, w.file, 0, RKV_WEIGHT_BF16, VOCAB, HIDDEN, 0);
  w.norm = weights[0];
  w.model = rkv_model(w.arena, w.weight, w.norm, 0, 1e-5);
  w.rows = rkv_rows(w.arena, (const int32_t[]){w.keys, w.values, w.row_position, w.row_end, w.tail_begin, w.active, w.counters}, 0);
  w.closed = rkv_arena(w.device, 4096);
  rkv_close(w.closed);
  for (int32_t i = 0; i < HANDLES; i++) CHECK(i * 4 == offsetof(world, tape) || ((const int32_t *)(const void *)&w)[i] > 0, "object %d of the world was refused", i);
}

static void settle(void) {
  const int32_t code = await_job(w.device, rkv_fence(w.arena));
  char fault[256] = "";
  rkv_fault(w.arena, (uint8_t *)fault, sizeof fault - 1);
  CHECK(code == 0 || code == RKV_POISONED, "the fuzzed ops ended with %d: %s", code, fault);
  if (code == RKV_POISONED) rkv_close(w.device), rkv_close(w.arena), w.device = 0;
}

void fuzz_ops(const rkv_cpu *cpu, int32_t count) {
  const char *path = fuzz_file(1 << 16);
  int32_t a[16], taken = 0, worlds = 0;
  make_world(isa_of(cpu), path);
  fill();
  for (int32_t op = 0, n; (n = right_arguments(op, a)) > 0; op++) {
    const int32_t code = call(op, a, 0.25f);
    char why[512] = "";
    rkv_why((uint8_t *)why, sizeof why - 1);
    CHECK(code >= 0 || n == 2, "op %d is refused as it should be called: %s", op, why); /* two arguments: rkv_rows without tensors */
  }
  settle();
  int32_t ops = 0;
  while (right_arguments(ops, a) > 0) ops++;
  for (int32_t i = 0; i < count; i++) {
    if (i % 64 == 63) {
      settle();
      if (w.device == 0 || i % 4096 == 4095) {                        /* an op of another world's end may not be told from one that failed */
        if (w.device != 0) rkv_close(w.arena), rkv_close(w.device);
        rkv_close(w.other_arena), rkv_close(w.file);
        make_world(isa_of(cpu), path), worlds++;
      }
      fill();
    }
    memset(a, 0, sizeof a);
    const int32_t op = below(ops), n = right_arguments(op, a);
    for (int32_t changes = below(3); changes >= 0; changes--) a[below(n)] = below(2) ? any_handle() : below(3) ? edge() : (int32_t)((uint32_t)a[below(n)] + (uint32_t)below(5) - 2);
    const int32_t code = call(op, a, below(9) ? 0.25f : (float)edge());
    taken += code >= 0;
    if (code >= 0) continue;
    char why[512] = "";
    CHECK(rkv_why((uint8_t *)why, sizeof why - 1) > 20 && strncmp(why, "Cannot ", 7) == 0 && code >= RKV_LIMIT, "op %d ended with %d: %s", op, code, why);
  }
  settle();
  printf("%-11s %d calls of %d ops: %d taken and run, %d worlds\n", cpu->name, count, ops, taken, worlds + 1);
  if (w.device != 0) rkv_close(w.arena), rkv_close(w.device);
  rkv_close(w.other_arena), rkv_close(w.file);
}
