/* queue_test.c: the C entry points as TypeScript calls them, from several threads: the queue and its pool, jobs, cancelling, recordings,
 * handles, and closing while work is under way. What is raced here is what TSan is asked about. */
#include "native.h"
#include <pthread.h>

/* Checks from several threads are counted when these have ended. */
typedef struct { int32_t isa, number; int wrong; } client;
#define EXPECT(condition) (c->wrong += !(condition))

static int32_t tensor(int32_t arena, int32_t dtype, int32_t a, int32_t b) { return rkv_tensor(arena, dtype, (const int32_t[]){a, b}, 2); }

/* Bytes that went out come back, through an op on the pool. */
static void copy_rounds(client *c, int32_t device, int32_t arena) {
  enum { ROWS = 40, WIDTH = 300 };
  const int32_t from = tensor(arena, RKV_I32, ROWS, WIDTH), to = tensor(arena, RKV_I32, ROWS, WIDTH);
  int32_t given[WIDTH], taken[WIDTH];
  for (int32_t round = 0; round < 30; round++) {
    for (int32_t i = 0; i < WIDTH; i++) given[i] = c->number * 1000 + round + i;
    EXPECT(rkv_write(from, round * WIDTH, (const uint8_t *)given, sizeof given) == 0);
    EXPECT(rkv_copy(to, 0, from, 0, ROWS) == 0);
    const int32_t job = rkv_read(to, round * WIDTH, WIDTH);
    EXPECT(job > 0 && await_job(device, job) == 0);
    EXPECT(rkv_take(job, (uint8_t *)taken, sizeof taken - 1) == RKV_RANGE);
    EXPECT(rkv_take(job, (uint8_t *)taken, sizeof taken) == sizeof taken && memcmp(given, taken, sizeof given) == 0);
    EXPECT(rkv_take(job, (uint8_t *)taken, sizeof taken) == RKV_STALE);
  }
}

/* A step on a tape does what it did when it was run; its tensors are named again by nobody. */
static void recorded_steps(client *c, int32_t device, int32_t arena) {
  const int32_t position = rkv_tensor(arena, RKV_I32, (const int32_t[]){4}, 1), active = rkv_tensor(arena, RKV_I32, (const int32_t[]){4}, 1);
  const int32_t on[4] = {1, 0, 1, 1};
  int32_t found[4];
  rkv_write(active, 0, (const uint8_t *)on, sizeof on);
  EXPECT(rkv_record(arena) == 0 && rkv_record(arena) == RKV_RECORDING);
  EXPECT(rkv_advance(position, active) == 0 && rkv_advance(position, active) == 0);
  EXPECT(tensor(arena, RKV_F32, 2, 2) == RKV_RECORDING && rkv_read(position, 0, 4) == RKV_RECORDING && rkv_fence(arena) == RKV_RECORDING);
  EXPECT(rkv_close(arena) == RKV_RECORDING);
  const int32_t tape = rkv_record_end(arena);
  EXPECT(tape > 0 && rkv_record_end(arena) == RKV_RECORDING);
  for (int32_t i = 0; i < 50; i++) EXPECT(rkv_replay(tape) == 0);
  const int32_t job = rkv_read(position, 0, 4);
  EXPECT(await_job(device, job) == 0 && rkv_take(job, (uint8_t *)found, sizeof found) == sizeof found);
  EXPECT(found[0] == 100 && found[1] == 0 && found[2] == 100 && found[3] == 100);
  EXPECT(rkv_replay(tape) == 0 && rkv_close(tape) == 0 && rkv_replay(tape) == RKV_STALE); /* closed while it is still to run */
}

/* Long work that is cancelled under way; afterwards the arena serves again. */
static void cancelled_work(client *c, int32_t device, int32_t arena) {
  const int32_t from = tensor(arena, RKV_F32, 500, 500), to = tensor(arena, RKV_F32, 500, 500);
  for (int32_t i = 0; i < 200; i++) EXPECT(rkv_copy(to, 0, from, 0, 500) == 0);
  rkv_cancel(arena, 1);
  EXPECT(await_job(device, rkv_fence(arena)) == RKV_CANCELLED);
  rkv_cancel(arena, 0);
  EXPECT(rkv_copy(to, 0, from, 0, 500) == 0 && await_job(device, rkv_fence(arena)) == 0);
}

static void *serve(void *given) {
  client *c = given;
  const int32_t device = rkv_open(RKV_CPU, 3, c->isa);
  for (int32_t round = 0; round < 4; round++) {
    const int32_t arena = rkv_arena(device, 64 << 20);
    EXPECT(arena > 0);
    copy_rounds(c, device, arena);
    recorded_steps(c, device, arena);
    cancelled_work(c, device, arena);
    const int32_t large = tensor(arena, RKV_F32, 3000, 1000);
    EXPECT(rkv_commit(large, RKV_STEP, 3000) == 0 && rkv_copy(large, 1000, large, 0, 10) == RKV_RANGE);
    const int32_t other = tensor(arena, RKV_F32, 3000, 1000);
    EXPECT(rkv_commit(other, RKV_STEP, 3000) == 0);
    for (int32_t i = 0; i < 3; i++) EXPECT(rkv_copy(other, 0, large, 0, 3000) == 0);
    EXPECT(rkv_release(large, 0, 10) == 0);
    const int32_t fence = rkv_fence(arena);
    EXPECT(rkv_close(arena) == 0 && rkv_close(arena) == RKV_STALE); /* with jobs in flight: they come, then it goes */
    EXPECT(rkv_copy(other, 0, large, 0, 1) == RKV_STALE && await_job(device, fence) == 0);
  }
  EXPECT(rkv_close(device) == 0 && rkv_arena(device, 1 << 20) == RKV_STALE);
  return NULL;
}

/* A queue that is full refuses ops, never a fence. */
static void full_queue(client *c) {
  const int32_t device = rkv_open(RKV_CPU, 1, c->isa), arena = rkv_arena(device, 64 << 20);
  const int32_t from = tensor(arena, RKV_F32, 1000, 1000), to = tensor(arena, RKV_F32, 1000, 1000);
  EXPECT(rkv_commit(from, RKV_STEP, 1000) == 0 && rkv_commit(to, RKV_STEP, 1000) == 0);
  int32_t code = 0;
  for (int32_t i = 0; i < 20000 && code == 0; i++) code = rkv_copy(to, 0, from, 0, 1000);
  EXPECT(code == RKV_LIMIT);
  rkv_cancel(arena, 1);
  EXPECT(await_job(device, rkv_fence(arena)) == RKV_CANCELLED);
  rkv_close(arena), rkv_close(device);
}

/* Handles of all kinds: a stale one, one of another kind and one that never was are refused. None may be what another client holds just now. */
static void handles(client *c) {
  const int32_t device = rkv_open(RKV_CPU, 1, c->isa), arena = rkv_arena(device, 1 << 20), a = tensor(arena, RKV_F32, 2, 3);
  const int32_t odd[] = {0, -1, 1, INT32_MAX, INT32_MIN, a ^ 1 << 20, a ^ 1 << 30, device, arena};
  for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
    EXPECT(rkv_copy(odd[i], 0, a, 0, 1) == RKV_STALE && rkv_copy(a, 0, odd[i], 0, 1) == RKV_STALE);
    EXPECT(rkv_read(odd[i], 0, 1) == RKV_STALE && rkv_commit(odd[i], 0, 1) == RKV_STALE);
  }
  EXPECT(rkv_close(a) == RKV_RANGE && rkv_take(0, NULL, 0) == RKV_STALE && rkv_take(-5, NULL, 0) == RKV_STALE);
  rkv_close(arena);
  EXPECT(rkv_read(a, 0, 1) == RKV_STALE && tensor(arena, RKV_F32, 1, 1) == RKV_STALE);
  rkv_close(device);
  int32_t before = 0;                                                 /* places are used again, handles are not */
  const int32_t other = rkv_open(RKV_CPU, 1, c->isa);
  for (int32_t i = 0; i < 3000; i++) {
    const int32_t handle = rkv_arena(other, 4096);
    EXPECT(handle > 0 && handle != before && rkv_close(handle) == 0 && rkv_close(handle) == RKV_STALE);
    before = handle;
    if (i % 500 == 499) await_job(other, rkv_fence(rkv_arena(other, 4096)));
  }
  rkv_close(other);
}

void test_queue(const rkv_cpu *cpu) {
  enum { CLIENTS = 3 };
  client clients[CLIENTS + 1] = {0};
  pthread_t threads[CLIENTS];
  for (int32_t i = 0; i <= CLIENTS; i++) clients[i] = (client){.isa = isa_of(cpu), .number = i};
  for (int32_t i = 0; i < CLIENTS; i++) pthread_create(&threads[i], NULL, serve, &clients[i]);
  handles(&clients[CLIENTS]);
  full_queue(&clients[CLIENTS]);
  for (int32_t i = 0; i < CLIENTS; i++) pthread_join(threads[i], NULL);
  for (int32_t i = 0; i <= CLIENTS; i++) CHECK(clients[i].wrong == 0, "client %d: %d answers are wrong", i, clients[i].wrong);
}
