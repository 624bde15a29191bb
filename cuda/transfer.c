/* transfer.c: bytes between host and device, and the news of finished jobs. The queue goes on while a thread of its own, the finisher, waits
 * for the stream to come to a job: so a prefill's next chunk is launched while the present one runs. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "beside.h"

void rkv_cuda_poison(rkv_cuda *c, rkv_arena_object *arena, const char *format, ...) {
  va_list values;
  va_start(values, format);
  pthread_mutex_lock(&c->memory_mutex);
  if (!atomic_load(&arena->poisoned)) {
    vsnprintf(arena->fault, sizeof arena->fault, format, values);
    atomic_store(&arena->poisoned, 1);
  }
  pthread_mutex_unlock(&c->memory_mutex);
  va_end(values);
}

static void finish(rkv_cuda *c, rkv_download *d) {
  CUresult result = cuEventSynchronize(d->event);
  if (result != 0) rkv_cuda_poison(c, d->arena, "Cannot go on: the device failed (%s)", rkv_driver_words(result));
  if (*(volatile int32_t *)rkv_fault_of(d->arena) != 0) rkv_cuda_poison(c, d->arena, "Cannot run attn_in: a slot has no room for another row (raise capacity)");
  if (d->to != NULL) memcpy(d->to, d->staging, d->bytes);
  rkv_job_finish(d->arena->device, d->job, atomic_load(&d->arena->poisoned) ? RKV_POISONED : d->code);
}

static void *finisher_main(void *state) {
  rkv_cuda *c = state;
  cuCtxSetCurrent(c->context);
  for (;;) {
    pthread_mutex_lock(&c->mutex);
    while (c->asked == c->finished && !c->stopping) pthread_cond_wait(&c->changed, &c->mutex);
    const bool has_ended = c->asked == c->finished;
    pthread_mutex_unlock(&c->mutex);
    if (has_ended) return NULL;
    finish(c, &c->downloads[c->finished % RKV_DOWNLOADS]);
    pthread_mutex_lock(&c->mutex);
    c->finished++;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
  }
}

bool rkv_transfer_start(rkv_cuda *c) {
  pthread_mutex_init(&c->mutex, NULL);
  pthread_mutex_init(&c->memory_mutex, NULL);
  pthread_cond_init(&c->changed, NULL);
  void *memory;
  if (cuMemHostAlloc(&memory, RKV_UPLOAD + RKV_DOWNLOADS * RKV_DOWNLOAD + RKV_FAULTS * 4, RKV_CU_MAPPED) != 0) return false;
  c->upload = memory;
  c->faults = (int32_t *)(c->upload + RKV_UPLOAD + RKV_DOWNLOADS * RKV_DOWNLOAD);
  for (int32_t i = 0; i < RKV_DOWNLOADS; i++) {
    c->downloads[i].staging = c->upload + RKV_UPLOAD + i * RKV_DOWNLOAD;
    if (cuEventCreate(&c->downloads[i].event, RKV_CU_NO_TIMING) != 0) return false;
  }
  return pthread_create(&c->finisher, NULL, finisher_main, c) == 0;
}

void rkv_transfer_stop(rkv_cuda *c) {
  pthread_mutex_lock(&c->mutex);
  c->stopping = true;
  pthread_cond_broadcast(&c->changed);
  pthread_mutex_unlock(&c->mutex);
  pthread_join(c->finisher, NULL);
  for (int32_t i = 0; i < RKV_DOWNLOADS; i++) cuEventDestroy_v2(c->downloads[i].event);
  cuMemFreeHost(c->upload);
}

/* Waits until fewer than `most` jobs are the finisher's. */
static void wait_for(rkv_cuda *c, uint64_t most) {
  pthread_mutex_lock(&c->mutex);
  while (c->asked - c->finished >= most) pthread_cond_wait(&c->changed, &c->mutex);
  pthread_mutex_unlock(&c->mutex);
}

void rkv_transfer_drain(rkv_cuda *c) { wait_for(c, 1); }

void rkv_cuda_settle(void *state) {
  rkv_cuda *c = state;
  cuCtxSetCurrent(c->context);
  rkv_beside_join(c);
  (void)cuStreamSynchronize(c->stream); /* a failure is told by the next job */
}

void rkv_cuda_write(void *state, rkv_arena_object *arena, void *to, const void *from, size_t bytes) {
  rkv_cuda *c = state;
  CUresult result = 0;
  cuCtxSetCurrent(c->context);
  rkv_beside_write(c, to, bytes);
  if (bytes > RKV_UPLOAD / 8) { /* rare and long: from where it lies */
    result = cuMemcpyHtoDAsync_v2((CUdeviceptr)(uintptr_t)to, from, bytes, c->stream);
    if (result == 0) result = cuStreamSynchronize(c->stream);
  } else {
    if (c->uploaded + bytes > RKV_UPLOAD) {
      result = cuStreamSynchronize(c->stream);
      c->uploaded = 0;
    }
    memcpy(c->upload + c->uploaded, from, bytes);
    if (result == 0) result = cuMemcpyHtoDAsync_v2((CUdeviceptr)(uintptr_t)to, c->upload + c->uploaded, bytes, c->stream);
    c->uploaded += (bytes + 63) / 64 * 64;
  }
  if (result != 0) rkv_cuda_poison(c, arena, "Cannot write %llu bytes: the device failed (%s)", (unsigned long long)bytes, rkv_driver_words(result));
}

void rkv_cuda_read(void *state, rkv_arena_object *arena, int32_t job, void *to, const void *from, size_t bytes, int32_t code) {
  rkv_cuda *c = state;
  cuCtxSetCurrent(c->context);
  wait_for(c, RKV_DOWNLOADS);
  rkv_download *d = &c->downloads[c->asked % RKV_DOWNLOADS];
  CUresult result = 0;
  *d = (rkv_download){.arena = arena, .job = job, .code = code, .event = d->event, .staging = d->staging};
  if (bytes > 0) rkv_beside_join(c);
  if (bytes > RKV_DOWNLOAD) { /* large: straight to where it is wanted, and this thread waits */
    result = cuMemcpyDtoHAsync_v2(to, (CUdeviceptr)(uintptr_t)from, bytes, c->stream);
    if (result == 0) result = cuStreamSynchronize(c->stream);
  } else if (bytes > 0) {
    d->to = to;
    d->bytes = bytes;
    result = cuMemcpyDtoHAsync_v2(d->staging, (CUdeviceptr)(uintptr_t)from, bytes, c->stream);
  }
  if (result == 0) result = rkv_beside_record(c, d->event);
  if (result != 0) rkv_cuda_poison(c, arena, "Cannot read %llu bytes: the device failed (%s)", (unsigned long long)bytes, rkv_driver_words(result));
  pthread_mutex_lock(&c->mutex);
  c->asked++;
  pthread_cond_broadcast(&c->changed);
  pthread_mutex_unlock(&c->mutex);
}
