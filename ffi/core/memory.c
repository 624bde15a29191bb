/* memory.c: arenas and tensors. An arena is address space; memory is counted, and checked against what is free, when it is committed.
 * Nothing moves: a tensor's address is its own until its arena is closed. */
#include <stdlib.h>
#include <string.h>
#include "core.h"

#define SMALL (1 << 20) /* tensors up to this size are committed at once */

/* A build with ASan keeps a gap before each tensor that nobody may touch: what runs past one's end is found. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define GAP 64
void __asan_poison_memory_region(const volatile void *begin, size_t bytes);
void __asan_unpoison_memory_region(const volatile void *begin, size_t bytes);
#endif
#endif
#if !defined(GAP)
#define GAP 0
#define __asan_poison_memory_region(begin, bytes) (void)(begin)
#define __asan_unpoison_memory_region(begin, bytes) (void)(begin)
#endif

static rkv_arena_object *arena_of(int32_t handle, const char *action) { return rkv_handle_get(handle, KIND_ARENA, action, "arena"); }

/* Memory is promised when it is committed and taken when it is touched, so what the process was promised and has not touched yet is not
 * free, although the system says so. Looking costs tens of microseconds: between two looks the sum that was found is spent. */
#define LOOK_NANOSECONDS 20000000
static pthread_mutex_t promises = PTHREAD_MUTEX_INITIALIZER;
static int64_t promised, spare;
static uint64_t looked_at;

static const rkv_remote *remote_of(const rkv_arena_object *arena) { return arena->device->backend->remote; }

/* Promises bytes to an arena, or takes them back (bytes < 0). A remote device counts its memory itself, when it takes it. */
static int32_t count_memory(rkv_arena_object *arena, int64_t bytes, const char *action) {
  int32_t code = 0;
  if (remote_of(arena) != NULL) return 0;
  pthread_mutex_lock(&promises);
  if (bytes > 0 && (bytes > spare || rkv_os_nanoseconds() - looked_at > LOOK_NANOSECONDS)) {
    int64_t total, available, untouched = promised - rkv_os_touched();
    rkv_os_memory(&total, &available);
    spare = available - (untouched > 0 ? untouched : 0);
    looked_at = rkv_os_nanoseconds();
  }
  if (bytes > 0 && bytes > spare) {
    code = rkv_refuse(RKV_MEMORY, "Cannot %s: %lld bytes are needed but %lld are free", action, (long long)bytes, (long long)(spare > 0 ? spare : 0));
  } else {
    if (bytes > 0) spare -= bytes;
    promised += bytes;
    atomic_fetch_add(&arena->committed, bytes);
  }
  pthread_mutex_unlock(&promises);
  return code;
}

int32_t rkv_arena(int32_t device, int64_t reserve) {
  rkv_device *d = rkv_handle_get(device, KIND_DEVICE, "make an arena", "device");
  if (d == NULL) return RKV_STALE;
  if (reserve <= 0 || reserve > (int64_t)1 << 46) {
    return rkv_refuse(RKV_RANGE, "Cannot make an arena: reserve is %lld bytes, want 1 to 2^46", (long long)reserve);
  }
  rkv_arena_object *arena = calloc(1, sizeof *arena);
  size_t page = rkv_os_page();
  size_t bytes = ((size_t)reserve + page - 1) / page * page;
  const rkv_remote *remote = d->backend->remote;
  uint8_t *memory = arena == NULL ? NULL : remote != NULL ? remote->reserve(d->state, arena, bytes) : rkv_os_reserve(bytes);
  if (memory == NULL) {
    free(arena);
    return rkv_refuse(RKV_MEMORY, "Cannot make an arena: address space for %lld bytes is needed and there is none left", (long long)reserve);
  }
  arena->device = d;
  arena->memory = memory;
  arena->reserved = bytes;
  arena->handle = rkv_handle_new(KIND_ARENA, arena);
  if (arena->handle < 0) {
    int32_t code = arena->handle;
    rkv_arena_free(arena);
    return code;
  }
  atomic_fetch_add(&d->users, 1);
  return arena->handle;
}

int32_t rkv_arena_memory(int32_t handle, int64_t *sizes) {
  rkv_arena_object *arena = arena_of(handle, "measure an arena");
  if (arena == NULL) return RKV_STALE;
  sizes[0] = (int64_t)arena->reserved;
  sizes[1] = (int64_t)arena->used;
  sizes[2] = atomic_load(&arena->committed);
  return 0;
}

void *rkv_arena_take(rkv_arena_object *arena, size_t bytes, bool commit, const char *action) {
  size_t align = bytes > SMALL ? rkv_os_page() : 64;
  size_t begin = (arena->used + GAP + align - 1) / align * align;
  if (bytes > arena->reserved || begin > arena->reserved - bytes) {
    rkv_refuse(RKV_MEMORY, "Cannot %s: %llu bytes are needed but the arena has %llu of its %llu left", action, (unsigned long long)bytes,
               (unsigned long long)(begin > arena->reserved ? 0 : arena->reserved - begin), (unsigned long long)arena->reserved);
    return NULL;
  }
  if (commit && count_memory(arena, (int64_t)bytes, action) != 0) return NULL;
  if (commit && remote_of(arena) != NULL) {
    const rkv_span span = {arena->memory + begin, bytes, 0, 1};
    if (remote_of(arena)->commit(arena->device->state, arena, &span, action) != 0) return NULL;
  }
  __asan_poison_memory_region(arena->memory + arena->used, begin - arena->used);
  arena->used = begin + bytes;
  return arena->memory + begin;
}

int32_t rkv_arena_own(rkv_arena_object *arena, rkv_object *object, void *extra, rkv_kind kind) {
  int32_t handle = rkv_handle_new(kind, object);
  if (handle < 0) {
    free(extra);
    free(object);
    return handle;
  }
  *object = (rkv_object){.next = arena->objects, .arena = arena, .extra = extra, .handle = handle};
  arena->objects = object;
  return handle;
}

void rkv_arena_disown(rkv_object *object) {
  rkv_object **at = &object->arena->objects;
  while (*at != object) at = &(*at)->next;
  *at = object->next;
}

int32_t rkv_tensor(int32_t handle, int32_t dtype, const int32_t *shape, int32_t rank) {
  static const char *action = "make a tensor";
  rkv_arena_object *arena = arena_of(handle, action);
  if (arena == NULL) return RKV_STALE;
  if (rkv_refuse_recording(arena, action) != 0) return RKV_RECORDING;
  if (dtype < RKV_F32 || dtype > RKV_Q8) return rkv_refuse(RKV_DTYPE, "Cannot %s: dtype is %d, want 0 to %d", action, dtype, RKV_Q8);
  if (rank < 1 || rank > 5) return rkv_refuse(RKV_SHAPE, "Cannot %s: it has %d dimensions, want 1 to 5", action, rank);
  int64_t elements = 1, extents = 1; /* of the extents that are not 0: whatever is computed from a shape later fits */
  for (int32_t i = 0; i < rank; i++) {
    if (shape[i] < 0) return rkv_refuse(RKV_SHAPE, "Cannot %s: dimension %d is %d, want 0 or more", action, i, shape[i]);
    if (shape[i] > 0 && extents > ((int64_t)1 << 42) / shape[i]) return rkv_refuse(RKV_SHAPE, "Cannot %s: it has more than 2^42 elements", action);
    extents *= shape[i] > 0 ? shape[i] : 1;
    elements *= shape[i];
  }
  if (dtype == RKV_Q8 && shape[rank - 1] == 0) return rkv_refuse(RKV_SHAPE, "Cannot %s: its rows of q8 have no elements, want 1 or more", action);
  int32_t width = shape[rank - 1];
  size_t bytes = width == 0 ? 0 : (size_t)(elements / width) * rkv_row_bytes(dtype, width);
  rkv_tensor_object *tensor = calloc(1, sizeof *tensor);
  if (tensor == NULL) return rkv_refuse(RKV_MEMORY, "Cannot %s: the process is out of memory", action);
  bool large = bytes > SMALL;
  if (large) tensor->committed = calloc((size_t)shape[0], sizeof *tensor->committed);
  void *data = large && tensor->committed == NULL ? NULL : rkv_arena_take(arena, bytes, !large, action);
  if (data == NULL) {
    free(tensor->committed);
    free(tensor);
    return RKV_MEMORY;
  }
  tensor->bytes = bytes;
  tensor->view = (rkv_view){.data = data, .dtype = dtype, .rank = rank};
  memcpy(tensor->view.shape, shape, (size_t)rank * sizeof *shape);
  return rkv_arena_own(arena, &tensor->object, tensor->committed, KIND_TENSOR);
}

/* Rows of a plane, planes of a slot and bytes of a row, as rkv_commit counts them. */
typedef struct { int32_t rows; int64_t planes; size_t row_bytes; } plane_shape;

static plane_shape planes_of(const rkv_view *v) {
  plane_shape p = {.rows = v->rank == 1 ? v->shape[0] : v->shape[v->rank - 2], .planes = 1, .row_bytes = rkv_row_bytes(v->dtype, v->shape[v->rank - 1])};
  if (v->rank == 1) p.row_bytes = rkv_row_bytes(v->dtype, 1);
  for (int32_t i = 1; i < v->rank - 2; i++) p.planes *= v->shape[i];
  return p;
}

int32_t rkv_commit(int32_t handle, int32_t slot, int32_t rows) {
  static const char *action = "commit rows";
  rkv_tensor_object *tensor = rkv_handle_get(handle, KIND_TENSOR, action, "tensor");
  if (tensor == NULL) return RKV_STALE;
  rkv_arena_object *arena = tensor->object.arena;
  if (rkv_refuse_recording(arena, action) != 0) return RKV_RECORDING;
  plane_shape p = planes_of(&tensor->view);
  if (rows < 0 || rows > p.rows) return rkv_refuse(RKV_RANGE, "Cannot %s: %d rows are wanted, the tensor has %d", action, rows, p.rows);
  if (tensor->committed == NULL) return 0;
  int32_t slots = tensor->view.rank > 2 ? tensor->view.shape[0] : 1;
  if (slot < RKV_STEP || slot >= slots) return rkv_refuse(RKV_RANGE, "Cannot %s: slot is %d, want %d to %d", action, slot, RKV_STEP, slots - 1);
  int32_t first = slot == RKV_STEP ? 0 : slot, last = slot == RKV_STEP ? slots : slot + 1;
  int64_t bytes = 0;
  for (int32_t s = first; s < last; s++) {
    if (rows > tensor->committed[s]) bytes += (rows - tensor->committed[s]) * p.planes * (int64_t)p.row_bytes;
  }
  if (count_memory(arena, bytes, action) != 0) return RKV_MEMORY;
  if (remote_of(arena) != NULL && bytes > 0) {
    size_t plane = (size_t)p.rows * p.row_bytes;
    for (int32_t s = first; s < last; s++) {
      if (rows <= tensor->committed[s]) continue;
      uint8_t *slot_begin = (uint8_t *)tensor->view.data + (size_t)s * (size_t)p.planes * plane;
      const rkv_span span = {slot_begin + (size_t)tensor->committed[s] * p.row_bytes, (size_t)(rows - tensor->committed[s]) * p.row_bytes, plane, (int32_t)p.planes};
      if (remote_of(arena)->commit(arena->device->state, arena, &span, action) != 0) return RKV_MEMORY;
    }
  }
  for (int32_t s = first; s < last; s++) {
    if (rows > tensor->committed[s]) tensor->committed[s] = rows;
  }
  return 0;
}

int32_t rkv_release(int32_t handle, int32_t slot, int32_t row) {
  static const char *action = "release rows";
  rkv_tensor_object *tensor = rkv_handle_get(handle, KIND_TENSOR, action, "tensor");
  if (tensor == NULL) return RKV_STALE;
  rkv_arena_object *arena = tensor->object.arena;
  if (rkv_refuse_recording(arena, action) != 0) return RKV_RECORDING;
  plane_shape p = planes_of(&tensor->view);
  int32_t slots = tensor->view.rank > 2 ? tensor->view.shape[0] : 1;
  if (slot < 0 || slot >= slots) return rkv_refuse(RKV_RANGE, "Cannot %s: slot is %d, want 0 to %d", action, slot, slots - 1);
  if (row < 0 || row > p.rows) return rkv_refuse(RKV_RANGE, "Cannot %s: row is %d, want 0 to %d", action, row, p.rows);
  if (tensor->committed == NULL || row >= tensor->committed[slot]) return 0;
  rkv_entry *entry = rkv_queue_entry(arena->device, RKV_KEPT, action);
  if (entry == NULL) return RKV_LIMIT;
  size_t plane = (size_t)p.rows * p.row_bytes;
  uint8_t *begin = (uint8_t *)tensor->view.data + (size_t)slot * (size_t)p.planes * plane + (size_t)row * p.row_bytes;
  entry->kind = ENTRY_RELEASE;
  entry->arena = arena;
  entry->as.release.begin = begin;
  entry->as.release.bytes = plane - (size_t)row * p.row_bytes;
  entry->as.release.stride = plane;
  entry->as.release.planes = (int32_t)p.planes;
  if (remote_of(arena) != NULL) {
    const rkv_span span = {begin, entry->as.release.bytes, plane, (int32_t)p.planes};
    remote_of(arena)->disclaim(arena->device->state, arena, &span);
  }
  rkv_queue_give(arena->device);
  count_memory(arena, -((tensor->committed[slot] - row) * p.planes * (int64_t)p.row_bytes), action);
  tensor->committed[slot] = row;
  return 0;
}

/* The handles of all that an arena holds end at once, and what it was promised: whoever closes it may ask for as much in the same breath. What
 * it took goes back when the queue comes to it. */
void rkv_arena_close(rkv_arena_object *arena) {
  for (rkv_object *o = arena->objects; o != NULL; o = o->next) rkv_handle_free(o->handle);
  rkv_handle_free(arena->handle);
  count_memory(arena, -atomic_load(&arena->committed), "close");
}

void rkv_arena_free(rkv_arena_object *arena) {
  for (rkv_object *o = arena->objects, *next; o != NULL; o = next) {
    next = o->next;
    free(o->extra);
    free(o);
  }
  __asan_unpoison_memory_region(arena->memory, arena->used);
  if (remote_of(arena) != NULL) remote_of(arena)->unreserve(arena->device->state, arena);
  else rkv_os_unreserve(arena->memory, arena->reserved);
  free((void *)arena->times);
  free(arena);
}
