/* memory.c: an arena on the device is a range of addresses. Pages of memory are put behind it as rows arrive, and taken away again. */
#include <stdlib.h>
#include "beside.h"

static const CUmemProp *prop_of(CUmemProp *prop, const rkv_cuda *c) {
  *prop = (CUmemProp){.type = 1, .location = {1, c->device}};
  return prop;
}

void *rkv_cuda_reserve(void *state, rkv_arena_object *arena, size_t bytes) {
  rkv_cuda *c = state;
  cuCtxSetCurrent(c->context);
  rkv_cuda_arena *a = calloc(1, sizeof *a);
  if (a == NULL) return NULL;
  a->count = (bytes + c->granule - 1) / c->granule;
  a->pages = calloc(a->count, sizeof *a->pages); /* untouched ones cost nothing */
  CUdeviceptr memory = 0;
  pthread_mutex_lock(&c->memory_mutex);
  for (int32_t i = 0; i < RKV_FAULTS && a->fault == NULL; i++) {
    if (c->fault_used[i]) continue;
    c->fault_used[i] = true;
    a->fault = &c->faults[i];
    *a->fault = 0;
  }
  pthread_mutex_unlock(&c->memory_mutex);
  if (a->pages == NULL || a->fault == NULL || cuMemAddressReserve(&memory, a->count * c->granule, 0, 0, 0) != 0) {
    if (a->fault != NULL) c->fault_used[a->fault - c->faults] = false;
    free(a->pages);
    free(a);
    return NULL;
  }
  arena->pages = a;
  return (void *)(uintptr_t)memory;
}

/* Pages that a run of bytes lies in; `whole`: only those that lie in it altogether. */
static void pages_of(const rkv_cuda *c, const rkv_arena_object *arena, const uint8_t *begin, size_t bytes, bool whole, size_t *first, size_t *end) {
  size_t from = (size_t)(begin - arena->memory), to = from + bytes;
  *first = whole ? (from + c->granule - 1) / c->granule : from / c->granule;
  *end = whole ? to / c->granule : (to + c->granule - 1) / c->granule;
}

/* Puts memory behind pages [first, end), as one piece; zeros, when the side stream has been waited for. */
static CUresult map(rkv_cuda *c, rkv_arena_object *arena, size_t first, size_t end) {
  rkv_cuda_arena *a = arena->pages;
  CUmemProp prop;
  CUmemHandle handle;
  const size_t bytes = (end - first) * c->granule;
  const CUdeviceptr at = (CUdeviceptr)(uintptr_t)arena->memory + first * c->granule;
  const CUmemAccess access = {{1, c->device}, 3};
  CUresult result = cuMemCreate(&handle, bytes, prop_of(&prop, c), 0);
  if (result != 0) return result;
  if ((result = cuMemMap(at, bytes, 0, handle, 0)) != 0) {
    cuMemRelease(handle);
    return result;
  }
  cuMemRelease(handle); /* the mapping keeps it */
  if ((result = cuMemSetAccess(at, bytes, &access, 1)) != 0 || (result = cuMemsetD8Async(at, 0, bytes, c->side)) != 0) {
    cuMemUnmap(at, bytes);
    return result;
  }
  for (size_t i = first; i < end; i++) a->pages[i] = (rkv_page){.run = end - first, .is_mapped = 1, .is_single = end - first == 1};
  atomic_fetch_add(&arena->committed, (int64_t)bytes);
  return 0;
}

int32_t rkv_cuda_commit(void *state, rkv_arena_object *arena, const rkv_span *span, const char *action) {
  rkv_cuda *c = state;
  rkv_cuda_arena *a = arena->pages;
  const size_t most = span->planes == 1 && span->stride == 0 ? a->count : 1; /* rows may be given back page by page, weights never */
  size_t first, end, missing = 0, available = 0, total;
  CUresult result = 0;
  if (span->bytes == 0) return 0;
  cuCtxSetCurrent(c->context);
  pthread_mutex_lock(&c->memory_mutex);
  for (int32_t p = 0; p < span->planes; p++) {
    pages_of(c, arena, span->begin + (size_t)p * span->stride, span->bytes, false, &first, &end);
    for (size_t i = first; i < end; i++) {
      missing += !a->pages[i].is_mapped;
      a->pages[i].is_disclaimed = 0;
    }
  }
  if (missing > 0) cuMemGetInfo_v2(&available, &total);
  const bool fits = missing * c->granule <= available;
  for (int32_t p = 0; p < span->planes && fits && missing > 0 && result == 0; p++) {
    pages_of(c, arena, span->begin + (size_t)p * span->stride, span->bytes, false, &first, &end);
    for (size_t i = first; i < end && result == 0; i++) {
      size_t next = i;
      while (next < end && !a->pages[next].is_mapped && next - i < most) next++;
      if (next == i) continue;
      result = map(c, arena, i, next);
      i = next - 1;
    }
  }
  if (missing > 0) cuStreamSynchronize(c->side);
  pthread_mutex_unlock(&c->memory_mutex);
  if (fits && result == 0) return 0;
  if (fits && result != RKV_CU_OUT_OF_MEMORY) return rkv_refuse(RKV_MEMORY, "Cannot %s: the driver gives no memory (%s)", action, rkv_driver_words(result));
  return rkv_refuse(RKV_MEMORY, "Cannot %s: %llu bytes are needed but %llu are free on the device", action, (unsigned long long)(missing * c->granule), (unsigned long long)available);
}

/* Between a release's call and its turn in the queue, rows may be committed again: then the release clears them and leaves the page. */
void rkv_cuda_disclaim(void *state, rkv_arena_object *arena, const rkv_span *span) {
  rkv_cuda *c = state;
  rkv_cuda_arena *a = arena->pages;
  pthread_mutex_lock(&c->memory_mutex);
  for (int32_t p = 0; p < span->planes; p++) {
    size_t first, end;
    pages_of(c, arena, span->begin + (size_t)p * span->stride, span->bytes, true, &first, &end);
    for (size_t i = first; i < end; i++) a->pages[i].is_disclaimed = 1;
  }
  pthread_mutex_unlock(&c->memory_mutex);
}

void rkv_cuda_release(void *state, rkv_arena_object *arena, const rkv_span *span) {
  rkv_cuda *c = state;
  rkv_cuda_arena *a = arena->pages;
  cuCtxSetCurrent(c->context);
  rkv_beside_join(c);
  cuStreamSynchronize(c->stream);
  pthread_mutex_lock(&c->memory_mutex);
  for (int32_t p = 0; p < span->planes; p++) {
    size_t first, end;
    pages_of(c, arena, span->begin + (size_t)p * span->stride, span->bytes, true, &first, &end);
    for (size_t i = first; i < end; i++) {
      const CUdeviceptr at = (CUdeviceptr)(uintptr_t)arena->memory + i * c->granule;
      if (!a->pages[i].is_mapped) continue;
      if (!a->pages[i].is_single || !a->pages[i].is_disclaimed) {
        cuMemsetD8Async(at, 0, c->granule, c->stream);
      } else if (cuMemUnmap(at, c->granule) == 0) {
        a->pages[i] = (rkv_page){0};
        atomic_fetch_sub(&arena->committed, (int64_t)c->granule);
      }
    }
  }
  pthread_mutex_unlock(&c->memory_mutex);
}

void rkv_cuda_unreserve(void *state, rkv_arena_object *arena) {
  rkv_cuda *c = state;
  rkv_cuda_arena *a = arena->pages;
  cuCtxSetCurrent(c->context);
  rkv_beside_join(c);
  cuStreamSynchronize(c->stream);
  rkv_transfer_drain(c);
  for (rkv_recording *r = a->recordings, *next; r != NULL; r = next) {
    next = r->next;
    cuGraphExecDestroy(r->graph);
    free(r);
  }
  for (size_t i = 0; i < a->count;) {
    const size_t run = a->pages[i].is_mapped ? a->pages[i].run : 1;
    if (a->pages[i].is_mapped) cuMemUnmap((CUdeviceptr)(uintptr_t)arena->memory + i * c->granule, run * c->granule);
    i += run;
  }
  cuMemAddressFree((CUdeviceptr)(uintptr_t)arena->memory, a->count * c->granule);
  pthread_mutex_lock(&c->memory_mutex);
  c->fault_used[a->fault - c->faults] = false;
  pthread_mutex_unlock(&c->memory_mutex);
  free(a->pages);
  free(a);
}

void rkv_cuda_memory(void *state, int64_t *total, int64_t *available) {
  rkv_cuda *c = state;
  size_t have = 0, all = 0;
  cuCtxSetCurrent(c->context);
  cuMemGetInfo_v2(&have, &all);
  *total = (int64_t)all;
  *available = (int64_t)have;
}
