/* handles.c: a handle is a place in one table and the place's generation, so that a handle kept too long is an error and not a crash. */
#include <string.h>
#include "core.h"

#define PLACE_BITS 20
#define PLACES (1 << PLACE_BITS)
#define GENERATIONS (1 << 11) /* place and generation together stay positive in an int32_t */

typedef struct { void *object; int32_t kind, generation, next_free; } place;

static place places[PLACES]; /* untouched places cost no memory */
static int32_t used = 1, first_free; /* place 0 is never given: handle 0 means none */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static const char *const kind_names[] = {"nothing", "a device", "an arena", "a tensor", "a file", "a weight", "a layer", "a model", "rows", "a tape"};

int32_t rkv_handle_new(rkv_kind kind, void *object) {
  pthread_mutex_lock(&mutex);
  int32_t at = first_free;
  if (at != 0) first_free = places[at].next_free;
  else if (used < PLACES) at = used++;
  if (at != 0) {
    places[at].object = object;
    places[at].kind = kind;
  }
  pthread_mutex_unlock(&mutex);
  if (at == 0) return rkv_refuse(RKV_LIMIT, "Cannot make another object: %d handles are in use, the most there can be", PLACES - 1);
  return places[at].generation << PLACE_BITS | at;
}

static place *find(int32_t handle) {
  int32_t at = handle & (PLACES - 1);
  if (handle <= 0 || at == 0 || places[at].kind == KIND_NONE || places[at].generation != handle >> PLACE_BITS) return NULL;
  return &places[at];
}

rkv_kind rkv_handle_kind(int32_t handle) {
  place *p = find(handle);
  return p == NULL ? KIND_NONE : (rkv_kind)p->kind;
}

void *rkv_handle_get(int32_t handle, rkv_kind kind, const char *action, const char *what) {
  place *p = find(handle);
  if (p == NULL) {
    rkv_refuse(RKV_STALE, "Cannot %s: %s is handle %d, which names nothing (was it closed?), want %s", action, what, handle, kind_names[kind]);
    return NULL;
  }
  if (p->kind != (int32_t)kind) {
    rkv_refuse(RKV_STALE, "Cannot %s: %s is a handle of %s, want %s", action, what, kind_names[p->kind], kind_names[kind]);
    return NULL;
  }
  return p->object;
}

void rkv_handle_free(int32_t handle) {
  pthread_mutex_lock(&mutex);
  place *p = find(handle);
  if (p != NULL) {
    p->kind = KIND_NONE;
    p->object = NULL;
    p->generation = (p->generation + 1) % GENERATIONS;
    p->next_free = first_free;
    first_free = (int32_t)(p - places);
  }
  pthread_mutex_unlock(&mutex);
}
