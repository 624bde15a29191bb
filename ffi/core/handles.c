/* handles.c: a handle is a place in one table and the place's generation, so that a handle kept too long is an error and not a crash.
 * Places go round as late as they can, and one whose generations are used up is never given again: no old handle ever fits anew. */
#include <string.h>
#include "core.h"

#define PLACE_BITS 20
#define PLACES (1 << PLACE_BITS)
#define GENERATIONS (1 << 11) /* place and generation together stay positive in an int32_t */
#define KIND_BITS 4

typedef struct {
  void *object;
  atomic_uint tag; /* generation << KIND_BITS | kind: read without the mutex, by any thread */
  int32_t next;
} place;

static place places[PLACES]; /* untouched places cost no memory */
#define RESTING 1024 /* places that wait before one of them is used again */
static int32_t used = 1, first_free, last_free, resting; /* place 0 is never given: handle 0 means none */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static const char *const kind_names[] = {"nothing", "a device", "an arena", "a tensor", "a file", "a weight", "a layer", "a model", "rows", "a tape"};

int32_t rkv_handle_new(rkv_kind kind, void *object) {
  pthread_mutex_lock(&mutex);
  int32_t at = 0, generation = 1; /* from 1: a small number given by mistake is no handle */
  if (used < PLACES && resting < RESTING) {
    at = used++;
  } else if (resting > 0) {
    at = first_free;
    first_free = places[at].next;
    resting--;
    generation = (int32_t)(atomic_load(&places[at].tag) >> KIND_BITS);
  }
  if (at != 0) {
    places[at].object = object;
    atomic_store(&places[at].tag, (unsigned)generation << KIND_BITS | (unsigned)kind);
  }
  pthread_mutex_unlock(&mutex);
  if (at == 0) return rkv_refuse(RKV_LIMIT, "Cannot make another object: %d handles are in use, the most there can be", PLACES - 1);
  return generation << PLACE_BITS | at;
}

static rkv_kind kind_of(int32_t handle, void **object) {
  place *p = &places[handle & (PLACES - 1)];
  unsigned tag = atomic_load(&p->tag);
  if (handle <= 0 || (int32_t)(tag >> KIND_BITS) != handle >> PLACE_BITS) return KIND_NONE;
  *object = p->object;
  return (rkv_kind)(tag & ((1u << KIND_BITS) - 1));
}

rkv_kind rkv_handle_kind(int32_t handle) {
  void *object;
  return kind_of(handle, &object);
}

void *rkv_handle_get(int32_t handle, rkv_kind kind, const char *action, const char *what) {
  void *object = NULL;
  rkv_kind found = kind_of(handle, &object);
  if (found == kind) return object;
  if (found == KIND_NONE) {
    rkv_refuse(RKV_STALE, "Cannot %s: %s is handle %d, which names nothing (was it closed?), want %s", action, what, handle, kind_names[kind]);
  } else {
    rkv_refuse(RKV_STALE, "Cannot %s: %s is a handle of %s, want %s", action, what, kind_names[found], kind_names[kind]);
  }
  return NULL;
}

void rkv_handle_free(int32_t handle) {
  pthread_mutex_lock(&mutex);
  if (rkv_handle_kind(handle) != KIND_NONE) {
    int32_t at = handle & (PLACES - 1), generation = (handle >> PLACE_BITS) + 1;
    places[at].object = NULL;
    if (generation == GENERATIONS) {
      atomic_store(&places[at].tag, 0); /* used up: no handle has generation 0 */
    } else {
      atomic_store(&places[at].tag, (unsigned)generation << KIND_BITS);
      places[at].next = 0;
      if (resting++ > 0) places[last_free].next = at;
      else first_free = at;
      last_free = at;
    }
  }
  pthread_mutex_unlock(&mutex);
}
