/* pool.c: the CPU's workers. The thread of the queue leads: it takes an op through its stages, hands out pieces and works on them itself.
 * The others spin for a moment, then park, so that idle cores are free and a shared machine does not collapse. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core.h"

#define SPIN_NANOSECONDS 50000
#define PIECE_BITS 24 /* ticket = pieces << 24 | next piece: one word, so nobody sees the count of one stage with the place of another */
#define PIECE_MASK ((1u << PIECE_BITS) - 1)

struct rkv_pool {
  const rkv_cpu *cpu;
  int32_t threads;
  bool pinned, leader_stays;
  _Alignas(64) _Atomic uint64_t ticket;
  _Alignas(64) atomic_int done;
  /* The stage that the ticket speaks of; written before the ticket, unchanged until all its pieces are done. */
  const rkv_kernel *kernel;
  const void *args;
  rkv_arena_object *arena;
  int32_t stage, pieces;
  atomic_int cut; /* a piece of the present op was left out, because its arena was cancelled */
  atomic_int parked, leader_waits, stop, alive;
  pthread_mutex_t mutex;
  pthread_cond_t work, finished;
  uint8_t *scratch;
};

typedef struct { rkv_pool *pool; int32_t worker; } worker_start;

static bool take(rkv_pool *p, int32_t *piece) {
  uint64_t ticket = atomic_load_explicit(&p->ticket, memory_order_acquire);
  if ((ticket & PIECE_MASK) >= ticket >> PIECE_BITS) return false;
  ticket = atomic_fetch_add_explicit(&p->ticket, 1, memory_order_acq_rel);
  *piece = (int32_t)(ticket & PIECE_MASK);
  return (ticket & PIECE_MASK) < ticket >> PIECE_BITS;
}

static void run_piece(rkv_pool *p, int32_t piece, int32_t worker) {
  if (!p->kernel->whole && atomic_load_explicit(&p->arena->cancel, memory_order_relaxed)) atomic_store_explicit(&p->cut, 1, memory_order_relaxed);
  else p->kernel->run(p->args, p->stage, piece, p->scratch + (size_t)worker * RKV_SCRATCH);
}

/* Works on pieces while there are any. */
static bool work(rkv_pool *p, int32_t worker) {
  int32_t piece;
  bool worked = false;
  while (take(p, &piece)) {
    int32_t pieces = p->pieces;
    run_piece(p, piece, worker);
    worked = true;
    if (atomic_fetch_add(&p->done, 1) + 1 == pieces && atomic_load(&p->leader_waits)) { /* either it sees the leader wait, or that one the end */
      pthread_mutex_lock(&p->mutex);
      pthread_cond_signal(&p->finished);
      pthread_mutex_unlock(&p->mutex);
    }
  }
  return worked;
}

static bool has_work(rkv_pool *p) {
  uint64_t ticket = atomic_load(&p->ticket); /* in one order with `parked`: either the leader sees the parked worker, or that one the work */
  return (ticket & PIECE_MASK) < ticket >> PIECE_BITS;
}

static void *worker_main(void *start) {
  rkv_pool *p = ((worker_start *)start)->pool;
  int32_t worker = ((worker_start *)start)->worker;
  free(start);
  if (p->pinned) rkv_os_stay(worker);
  uint64_t idle_since = rkv_os_nanoseconds();
  for (uint32_t turn = 0; !atomic_load(&p->stop); turn++) {
    if (work(p, worker)) {
      idle_since = rkv_os_nanoseconds();
    } else if (turn % 64 != 0 || rkv_os_nanoseconds() - idle_since < SPIN_NANOSECONDS) {
      rkv_os_pause();
    } else {
      pthread_mutex_lock(&p->mutex);
      atomic_fetch_add(&p->parked, 1);
      while (!has_work(p) && !atomic_load(&p->stop)) pthread_cond_wait(&p->work, &p->mutex);
      atomic_fetch_sub(&p->parked, 1);
      pthread_mutex_unlock(&p->mutex);
      idle_since = rkv_os_nanoseconds();
    }
  }
  atomic_fetch_sub(&p->alive, 1);
  return NULL;
}

rkv_pool *rkv_pool_new(const rkv_cpu *cpu, int32_t threads, bool pinned) {
  rkv_pool *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
  if (p == NULL) return NULL;
  memset(p, 0, sizeof *p);
  p->cpu = cpu;
  p->pinned = pinned;
  p->threads = 1;
  p->scratch = aligned_alloc(64, (size_t)threads * RKV_SCRATCH);
  if (p->scratch == NULL) {
    free(p);
    return NULL;
  }
  pthread_mutex_init(&p->mutex, NULL);
  pthread_cond_init(&p->work, NULL);
  pthread_cond_init(&p->finished, NULL);
  for (int32_t worker = 1; worker < threads; worker++) {
    worker_start *start = malloc(sizeof *start);
    pthread_t thread;
    if (start == NULL) break;
    *start = (worker_start){p, worker};
    atomic_fetch_add(&p->alive, 1);
    if (pthread_create(&thread, NULL, worker_main, start) != 0) { /* a narrower pool gives the same bits */
      atomic_fetch_sub(&p->alive, 1);
      free(start);
      break;
    }
    pthread_detach(thread);
    p->threads++;
  }
  return p;
}

void rkv_pool_close(rkv_pool *p) {
  pthread_mutex_lock(&p->mutex);
  atomic_store(&p->stop, 1);
  pthread_cond_broadcast(&p->work);
  pthread_mutex_unlock(&p->mutex);
  while (atomic_load(&p->alive) > 0) rkv_os_pause();
  free(p->scratch);
  free(p);
}

const rkv_cpu *rkv_pool_cpu(const rkv_pool *p) { return p->cpu; }
int32_t rkv_pool_threads(const rkv_pool *p) { return p->threads; }

/* Waits until the workers have finished what they took. */
static void wait_done(rkv_pool *p, int32_t pieces) {
  uint64_t since = rkv_os_nanoseconds();
  for (uint32_t turn = 1; atomic_load_explicit(&p->done, memory_order_acquire) < pieces; turn++) {
    if (turn % 64 != 0 || rkv_os_nanoseconds() - since < SPIN_NANOSECONDS) {
      rkv_os_pause();
      continue;
    }
    pthread_mutex_lock(&p->mutex);
    atomic_store(&p->leader_waits, 1);
    while (atomic_load(&p->done) < pieces) pthread_cond_wait(&p->finished, &p->mutex);
    atomic_store(&p->leader_waits, 0);
    pthread_mutex_unlock(&p->mutex);
  }
}

int32_t rkv_pool_run(rkv_pool *p, rkv_arena_object *arena, const char *name, const rkv_kernel *kernel, const void *args) {
  if (p->pinned && !p->leader_stays) {
    rkv_os_stay(0);
    p->leader_stays = true;
  }
  p->kernel = kernel;
  p->args = args;
  p->arena = arena;
  atomic_store_explicit(&p->cut, 0, memory_order_relaxed);
  for (int32_t stage = 0;; stage++) {
    if (atomic_load_explicit(&p->cut, memory_order_relaxed)) return RKV_CANCELLED;
    int32_t pieces = kernel->pieces(args, stage);
    if (pieces == RKV_DONE) return 0;
    if (pieces < 0) {
      snprintf(arena->fault, sizeof arena->fault, "Cannot run %s: %s", name, kernel->fault ? kernel->fault : "its numbers do not fit");
      return pieces;
    }
    p->stage = stage;
    if (pieces == 1 || p->threads == 1 || (uint32_t)pieces > PIECE_MASK / 2) { /* no hand-off for what one thread does anyway */
      for (int32_t piece = 0; piece < pieces; piece++) run_piece(p, piece, 0);
      continue;
    }
    p->pieces = pieces;
    atomic_store_explicit(&p->done, 0, memory_order_relaxed);
    atomic_store_explicit(&p->ticket, (uint64_t)pieces << PIECE_BITS, memory_order_seq_cst);
    if (atomic_load(&p->parked) > 0) {
      pthread_mutex_lock(&p->mutex);
      pthread_cond_broadcast(&p->work);
      pthread_mutex_unlock(&p->mutex);
    }
    work(p, 0);
    wait_done(p, pieces);
  }
}
