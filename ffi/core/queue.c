/* queue.c: one queue per device. TypeScript gives entries; one thread takes them in order, and tells of finished jobs through a pipe. */
#include <stdlib.h>
#include <string.h>
#include "core.h"

#define JOBS 4096
#define SPIN_NANOSECONDS 50000

/* Jobs that were asked for and not yet taken back. A job's number never comes twice in a process's life, within reason. */
typedef struct { int32_t number; bool used, kept; atomic_bool arrived; size_t bytes; void *data; uint8_t inlined[64]; } job;
static job jobs[JOBS];
static int32_t job_turn;
static pthread_mutex_t job_mutex = PTHREAD_MUTEX_INITIALIZER;

/* A number for a job, and room for what it brings; NULL with a code and a sentence. */
static job *new_job(size_t bytes, int32_t *code, const char *action) {
  *code = RKV_LIMIT;
  pthread_mutex_lock(&job_mutex);
  job *found = NULL;
  for (int32_t i = 0; i < JOBS && found == NULL; i++) {
    job_turn = (job_turn + 1) & INT32_MAX;
    job *j = &jobs[job_turn % JOBS];
    if (job_turn == 0 || j->used) continue;
    void *data = bytes <= sizeof j->inlined ? j->inlined : malloc(bytes);
    if (data == NULL) {
      *code = rkv_refuse(RKV_MEMORY, "Cannot %s: %llu bytes are needed and the process is out of memory", action, (unsigned long long)bytes);
      break;
    }
    j->number = job_turn;
    j->used = true;
    j->kept = bytes > 0;
    j->bytes = bytes;
    j->data = data;
    atomic_store(&j->arrived, false);
    found = j;
  }
  pthread_mutex_unlock(&job_mutex);
  if (found == NULL && *code == RKV_LIMIT) rkv_refuse(RKV_LIMIT, "Cannot %s: %d jobs are under way, the most there can be", action, JOBS);
  return found;
}

static job *job_of(int32_t number) {
  if (number <= 0) return NULL;
  job *j = &jobs[number % JOBS];
  return j->used && j->number == number ? j : NULL;
}

static void forget_job(job *j) {
  pthread_mutex_lock(&job_mutex);
  if (j->data != j->inlined) free(j->data);
  j->used = false;
  pthread_mutex_unlock(&job_mutex);
}

void rkv_job_finish(rkv_device *d, int32_t number, int32_t code) {
  const int32_t pair[2] = {number, code};
  job *j = job_of(number);
  if (j->kept) atomic_store(&j->arrived, true);
  else forget_job(j); /* before the news of it: the one who waits may ask for another at once */
  rkv_os_write(d->pipe[1], pair, sizeof pair);
}

static void run_load(rkv_device *d, rkv_arena_object *arena, const rkv_load *load) {
  if (atomic_load(&arena->poisoned)) return;
  if (atomic_load(&arena->cancel)) arena->cut = true;
  else if (d->backend->remote != NULL) rkv_load_remote(d, arena, load);
  else if (d->backend->share(d->state, arena, &rkv_load_kernel, load) != 0) arena->cut = true; /* nothing but a cancel ends it early */
}

/* Adds a run, and the time since `began`. */
static void add_time(rkv_arena_object *arena, int32_t op, uint64_t began) {
  atomic_fetch_add_explicit(&arena->times[2 * op], 1, memory_order_relaxed);
  atomic_fetch_add_explicit(&arena->times[2 * op + 1], (int64_t)(rkv_os_nanoseconds() - began), memory_order_relaxed);
}

/* Runs an op and adds its time. What a remote device still had to do is waited for first, and so is the op. */
static int32_t run_timed(rkv_device *d, rkv_arena_object *arena, int32_t op, const void *args) {
  const rkv_remote *remote = d->backend->remote;
  if (remote != NULL) remote->settle(d->state);
  uint64_t began = rkv_os_nanoseconds();
  int32_t code = d->backend->run(d->state, arena, op, args);
  if (remote != NULL) remote->settle(d->state);
  add_time(arena, op, began);
  return code;
}

static void run_op(rkv_device *d, rkv_arena_object *arena, int32_t op, const void *args) {
  if (atomic_load(&arena->poisoned)) return;
  int32_t code = atomic_load(&arena->cancel) ? RKV_CANCELLED
                 : atomic_load_explicit(&arena->timed, memory_order_relaxed) == RKV_CLOCK_OPS ? run_timed(d, arena, op, args)
                                                                             : d->backend->run(d->state, arena, op, args);
  if (code == RKV_CANCELLED) arena->cut = true;
  else if (code != 0) atomic_store(&arena->poisoned, 1);
}

/* What a job tells of the ops before it: 0 only when all of them have run to their ends, even if the cancel flag is down again. */
static int32_t code_of(rkv_arena_object *arena) {
  bool cut = arena->cut;
  arena->cut = false;
  return atomic_load(&arena->poisoned) ? RKV_POISONED : cut || atomic_load(&arena->cancel) ? RKV_CANCELLED : 0;
}

static void replay_remote(rkv_device *d, rkv_arena_object *arena, rkv_tape *tape) {
  if (atomic_load(&arena->poisoned)) return;
  if (atomic_load(&arena->cancel)) {
    arena->cut = true;
    return;
  }
  const uint64_t began = rkv_os_nanoseconds();
  if (d->backend->remote->replay(d->state, arena, tape) != 0) atomic_store(&arena->poisoned, 1);
  if (atomic_load(&arena->timed) == RKV_CLOCK_REPLAYS) add_time(arena, RKV_OP_COUNT, began);
}

static void run_entry(rkv_device *d, rkv_entry *e) {
  const rkv_remote *remote = d->backend->remote;
  switch (e->kind) {
    case ENTRY_OP:
      run_op(d, e->arena, e->op, e->as.args);
      break;
    case ENTRY_REPLAY:
      if (remote != NULL && atomic_load(&e->arena->timed) != RKV_CLOCK_OPS) {
        replay_remote(d, e->arena, e->as.tape);
        break;
      }
      for (int32_t i = 0; i < e->as.tape->count; i++) run_op(d, e->arena, e->as.tape->entries[i].op, e->as.tape->entries[i].as.args);
      break;
    case ENTRY_WRITE:
      if (!atomic_load(&e->arena->poisoned)) {
        const void *from = e->as.copy.staging ? e->as.copy.staging : e->as.copy.inlined;
        if (remote != NULL) remote->write(d->state, e->arena, e->as.copy.to, from, e->as.copy.bytes);
        else memcpy(e->as.copy.to, from, e->as.copy.bytes);
      }
      free(e->as.copy.staging);
      break;
    case ENTRY_READ: {
      job *j = job_of(e->op);
      if (remote != NULL) {
        remote->read(d->state, e->arena, e->op, j->data, e->as.copy.to, e->as.copy.bytes, code_of(e->arena));
        break;
      }
      memcpy(j->data, e->as.copy.to, e->as.copy.bytes);
      rkv_job_finish(d, e->op, code_of(e->arena));
      break;
    }
    case ENTRY_LOAD:
      run_load(d, e->arena, &e->as.load);
      break;
    case ENTRY_FENCE:
      if (remote != NULL) remote->read(d->state, e->arena, e->op, NULL, NULL, 0, code_of(e->arena));
      else rkv_job_finish(d, e->op, code_of(e->arena));
      break;
    case ENTRY_RELEASE:
      if (remote != NULL) {
        const rkv_span span = {e->as.release.begin, e->as.release.bytes, e->as.release.stride, e->as.release.planes};
        remote->release(d->state, e->arena, &span);
        break;
      }
      for (int32_t i = 0; i < e->as.release.planes; i++) {
        rkv_os_discard((uint8_t *)e->as.release.begin + (size_t)i * e->as.release.stride, e->as.release.bytes);
      }
      break;
    case ENTRY_DISCARD:
      rkv_os_discard(e->as.release.begin, e->as.release.bytes);
      break;
    case ENTRY_FREE_ARENA:
      rkv_arena_free(e->as.object);
      atomic_fetch_sub(&d->users, 1);
      break;
    case ENTRY_FREE_TAPE:
      if (remote != NULL) remote->forget(d->state, e->as.tape);
      free(e->as.tape->entries);
      free(e->as.tape);
      break;
    case ENTRY_FREE_FILE:
      rkv_file_close(e->as.object);
      atomic_fetch_sub(&d->users, 1);
      break;
    case ENTRY_STOP:
      atomic_fetch_sub(&d->users, 1);
      break;
  }
}

/* Pipes of devices that have ended. They are used again and never closed: somebody may still be reading there. */
static int idle_pipes[16][2], idle_pipe_count;
static pthread_mutex_t pipe_mutex = PTHREAD_MUTEX_INITIALIZER;

static bool take_pipe(int fds[2]) {
  pthread_mutex_lock(&pipe_mutex);
  bool idle = idle_pipe_count > 0;
  if (idle) memcpy(fds, idle_pipes[--idle_pipe_count], sizeof idle_pipes[0]);
  pthread_mutex_unlock(&pipe_mutex);
  return idle || rkv_os_pipe(fds);
}

static void leave_pipe(const int fds[2]) {
  pthread_mutex_lock(&pipe_mutex);
  if (idle_pipe_count < 16) memcpy(idle_pipes[idle_pipe_count++], fds, sizeof idle_pipes[0]);
  pthread_mutex_unlock(&pipe_mutex);
}

static void *queue_main(void *device) {
  rkv_device *d = device;
  uint64_t idle_since = rkv_os_nanoseconds();
  for (uint32_t turn = 0; atomic_load_explicit(&d->users, memory_order_relaxed) > 0; turn++) {
    uint64_t head = atomic_load_explicit(&d->head, memory_order_relaxed);
    if (head != atomic_load_explicit(&d->tail, memory_order_acquire)) {
      run_entry(d, &d->ring[head % RKV_RING]);
      atomic_store_explicit(&d->head, head + 1, memory_order_release);
      idle_since = rkv_os_nanoseconds();
    } else if (turn % 64 != 0 || rkv_os_nanoseconds() - idle_since < SPIN_NANOSECONDS) {
      rkv_os_pause();
    } else {
      pthread_mutex_lock(&d->mutex);
      atomic_store(&d->asleep, 1);
      while (head == atomic_load(&d->tail)) pthread_cond_wait(&d->given, &d->mutex);
      atomic_store(&d->asleep, 0);
      pthread_mutex_unlock(&d->mutex);
    }
  }
  d->backend->close(d->state);
  leave_pipe(d->pipe);
  pthread_mutex_lock(&d->mutex); /* whoever gave the last entry has let go (give_end) */
  pthread_mutex_unlock(&d->mutex);
  free(d->ring);
  free(d);
  return NULL;
}

int32_t rkv_device_start(const rkv_backend *backend, void *state) {
  rkv_device *d = calloc(1, sizeof *d);
  pthread_t thread;
  if (d == NULL || (d->ring = calloc(RKV_RING, sizeof *d->ring)) == NULL || !take_pipe(d->pipe)) {
    if (d != NULL) free(d->ring);
    free(d);
    return rkv_refuse(RKV_MEMORY, "Cannot open a device: no memory or no file descriptor is left");
  }
  d->backend = backend;
  d->state = state;
  atomic_store(&d->users, 1);
  pthread_mutex_init(&d->mutex, NULL);
  pthread_cond_init(&d->given, NULL);
  d->handle = rkv_handle_new(KIND_DEVICE, d);
  if (d->handle > 0 && pthread_create(&thread, NULL, queue_main, d) == 0) {
    pthread_detach(thread);
    return d->handle;
  }
  int32_t code = d->handle < 0 ? d->handle : rkv_refuse(RKV_MEMORY, "Cannot open a device: no thread is left");
  if (d->handle > 0) rkv_handle_free(d->handle);
  free(d->ring);
  free(d);
  return code;
}

rkv_entry *rkv_queue_entry(rkv_device *d, int32_t kept, const char *action) {
  uint64_t tail = atomic_load_explicit(&d->tail, memory_order_relaxed), waiting = tail - atomic_load_explicit(&d->head, memory_order_acquire);
  if (waiting + (uint64_t)kept >= RKV_RING) {
    rkv_refuse(RKV_LIMIT, "Cannot %s: %d ops wait in the queue, the most it holds (await a fence now and then)", action, (int32_t)waiting);
    return NULL;
  }
  return &d->ring[tail % RKV_RING];
}

void rkv_queue_give(rkv_device *d) {
  atomic_fetch_add(&d->tail, 1);
  if (!atomic_load(&d->asleep)) return;
  pthread_mutex_lock(&d->mutex);
  pthread_cond_signal(&d->given);
  pthread_mutex_unlock(&d->mutex);
}

/* The same for an entry that may be the device's last: the queue may end with it, and does not go before the mutex is free again. */
static void give_end(rkv_device *d) {
  pthread_mutex_lock(&d->mutex);
  atomic_fetch_add(&d->tail, 1);
  pthread_cond_signal(&d->given);
  pthread_mutex_unlock(&d->mutex);
}

int32_t rkv_refuse_recording(const rkv_arena_object *arena, const char *action) {
  if (arena->recording == NULL) return 0;
  return rkv_refuse(RKV_RECORDING, "Cannot %s: a step is being recorded, want it before or after", action);
}

/* ---- jobs ---- */

int32_t rkv_results(int32_t device) {
  rkv_device *d = rkv_handle_get(device, KIND_DEVICE, "find the results", "device");
  return d == NULL ? RKV_STALE : d->pipe[0];
}

int32_t rkv_wait(int32_t results, int32_t *pairs) {
  int32_t bytes = rkv_os_read(results, pairs, 64 * 2 * sizeof *pairs);
  if (bytes < 0) return rkv_refuse(RKV_STALE, "Cannot wait: %d is no pipe of results, want what rkv_results gave", results);
  return bytes / 8;
}

int32_t rkv_fence(int32_t handle) {
  static const char *action = "fence";
  rkv_arena_object *arena = rkv_handle_get(handle, KIND_ARENA, action, "arena");
  if (arena == NULL) return RKV_STALE;
  if (rkv_refuse_recording(arena, action) != 0) return RKV_RECORDING;
  rkv_entry *entry = rkv_queue_entry(arena->device, 0, action);
  if (entry == NULL) return RKV_LIMIT;
  int32_t code;
  job *j = new_job(0, &code, action);
  if (j == NULL) return code;
  int32_t number = j->number; /* when the entry is given, the job may be over before this returns */
  entry->kind = ENTRY_FENCE;
  entry->arena = arena;
  entry->op = number;
  rkv_queue_give(arena->device);
  return number;
}

int32_t rkv_span_of(rkv_tensor_object *tensor, int32_t offset, int64_t count, const char *action, uint8_t **begin, size_t *bytes) {
  const rkv_view *v = &tensor->view;
  int32_t width = v->dtype == RKV_Q8 ? v->shape[v->rank - 1] : 1;
  size_t unit = rkv_row_bytes(v->dtype, width);
  int64_t elements = 1;
  for (int32_t i = 0; i < v->rank; i++) elements *= v->shape[i];
  if (offset < 0 || count < 0 || offset + count > elements || offset % width != 0 || count % width != 0) {
    return rkv_refuse(RKV_RANGE, "Cannot %s: elements %d to %lld are wanted, the tensor has %lld", action, offset, (long long)(offset + count), (long long)elements);
  }
  *begin = (uint8_t *)v->data + (size_t)(offset / width) * unit;
  *bytes = (size_t)(count / width) * unit;
  return 0;
}

int32_t rkv_write(int32_t handle, int32_t offset, const uint8_t *data, uint32_t bytes) {
  static const char *action = "write";
  rkv_tensor_object *tensor = rkv_handle_get(handle, KIND_TENSOR, action, "tensor");
  if (tensor == NULL) return RKV_STALE;
  rkv_arena_object *arena = tensor->object.arena;
  if (rkv_refuse_recording(arena, action) != 0) return RKV_RECORDING;
  const rkv_view *v = &tensor->view;
  int32_t width = v->dtype == RKV_Q8 ? v->shape[v->rank - 1] : 1;
  size_t unit = rkv_row_bytes(v->dtype, width);
  if (bytes % unit != 0) return rkv_refuse(RKV_RANGE, "Cannot %s: %u bytes are no whole number of elements of %llu bytes", action, bytes, (unsigned long long)unit);
  uint8_t *to;
  size_t length;
  if (rkv_span_of(tensor, offset, (int64_t)(bytes / unit) * width, action, &to, &length) != 0) return RKV_RANGE;
  if (length == 0) return 0;
  rkv_entry *entry = rkv_queue_entry(arena->device, RKV_KEPT, action);
  if (entry == NULL) return RKV_LIMIT;
  void *staging = length <= sizeof entry->as.copy.inlined ? NULL : malloc(length);
  if (staging == NULL && length > sizeof entry->as.copy.inlined) {
    return rkv_refuse(RKV_MEMORY, "Cannot %s: %llu bytes are needed and the process is out of memory", action, (unsigned long long)length);
  }
  memcpy(staging ? staging : entry->as.copy.inlined, data, length);
  entry->kind = ENTRY_WRITE;
  entry->arena = arena;
  entry->as.copy.to = to;
  entry->as.copy.bytes = length;
  entry->as.copy.staging = staging;
  rkv_queue_give(arena->device);
  return 0;
}

int32_t rkv_read(int32_t handle, int32_t offset, int32_t count) {
  static const char *action = "read";
  rkv_tensor_object *tensor = rkv_handle_get(handle, KIND_TENSOR, action, "tensor");
  if (tensor == NULL) return RKV_STALE;
  rkv_arena_object *arena = tensor->object.arena;
  if (rkv_refuse_recording(arena, action) != 0) return RKV_RECORDING;
  uint8_t *from;
  size_t bytes;
  if (rkv_span_of(tensor, offset, count, action, &from, &bytes) != 0) return RKV_RANGE;
  if (bytes == 0) return rkv_refuse(RKV_RANGE, "Cannot %s: no element is wanted, want one or more", action);
  rkv_entry *entry = rkv_queue_entry(arena->device, 0, action);
  if (entry == NULL) return RKV_LIMIT;
  int32_t code;
  job *j = new_job(bytes, &code, action);
  if (j == NULL) return code;
  int32_t number = j->number;
  entry->kind = ENTRY_READ;
  entry->arena = arena;
  entry->op = number;
  entry->as.copy.to = from;
  entry->as.copy.bytes = bytes;
  rkv_queue_give(arena->device);
  return number;
}

int32_t rkv_take(int32_t number, uint8_t *data, uint32_t bytes) {
  job *j = job_of(number);
  if (j == NULL) return rkv_refuse(RKV_STALE, "Cannot take job %d: there is none, or it was taken already", number);
  if (!atomic_load(&j->arrived)) return rkv_refuse(RKV_RANGE, "Cannot take job %d: it has not arrived yet", number);
  if (bytes < j->bytes) return rkv_refuse(RKV_RANGE, "Cannot take job %d: it has %llu bytes, the buffer %u", number, (unsigned long long)j->bytes, bytes);
  int32_t length = (int32_t)j->bytes;
  memcpy(data, j->data, j->bytes);
  forget_job(j);
  return length;
}

int32_t rkv_cancel(int32_t handle, int32_t on) {
  rkv_arena_object *arena = rkv_handle_get(handle, KIND_ARENA, "cancel", "arena");
  if (arena == NULL) return RKV_STALE;
  atomic_store(&arena->cancel, on != 0);
  return 0;
}

int32_t rkv_clock(int32_t handle, int32_t on) {
  rkv_arena_object *arena = rkv_handle_get(handle, KIND_ARENA, "time ops", "arena");
  if (arena == NULL) return RKV_STALE;
  if (on < 0 || on > RKV_CLOCK_REPLAYS) return rkv_refuse(RKV_RANGE, "Cannot time ops: on is %d, want 0 to %d", on, RKV_CLOCK_REPLAYS);
  if (on && arena->times == NULL && (arena->times = calloc(2 * (RKV_OP_COUNT + 1), sizeof *arena->times)) == NULL) {
    return rkv_refuse(RKV_MEMORY, "Cannot time ops: the process is out of memory");
  }
  atomic_store(&arena->timed, on);
  return 0;
}

int32_t rkv_times(int32_t handle, int64_t *times) {
  rkv_arena_object *arena = rkv_handle_get(handle, KIND_ARENA, "tell times", "arena");
  if (arena == NULL) return RKV_STALE;
  for (int32_t i = 0; i < 2 * (RKV_OP_COUNT + 1); i++) times[i] = arena->times == NULL ? 0 : atomic_load_explicit(&arena->times[i], memory_order_relaxed);
  return RKV_OP_COUNT + 1;
}

int32_t rkv_op_name(int32_t op, uint8_t *text, uint32_t bytes) {
  if (op < 0 || op > RKV_OP_COUNT) return rkv_refuse(RKV_RANGE, "Cannot name an op: it is number %d, want 0 to %d", op, RKV_OP_COUNT);
  const char *name = op == RKV_OP_COUNT ? "replay" : rkv_op_names[op];
  size_t length = strlen(name);
  if (length > bytes) length = bytes;
  memcpy(text, name, length);
  return (int32_t)length;
}

int32_t rkv_fault(int32_t handle, uint8_t *text, uint32_t bytes) {
  rkv_arena_object *arena = rkv_handle_get(handle, KIND_ARENA, "find a fault", "arena");
  if (arena == NULL) return RKV_STALE;
  if (!atomic_load(&arena->poisoned)) return 0;
  size_t length = strlen(arena->fault);
  if (length > bytes) length = bytes;
  memcpy(text, arena->fault, length);
  return (int32_t)length;
}

int32_t rkv_close(int32_t handle) {
  static const char *action = "close";
  rkv_kind kind = rkv_handle_kind(handle);
  rkv_device *d = NULL;
  rkv_entry wanted = {0};
  if (kind == KIND_ARENA) {
    rkv_arena_object *arena = rkv_handle_get(handle, kind, action, "arena");
    if (rkv_refuse_recording(arena, action) != 0) return RKV_RECORDING;
    d = arena->device;
    wanted = (rkv_entry){.kind = ENTRY_FREE_ARENA, .as.object = arena};
  } else if (kind == KIND_FILE) {
    rkv_file_object *file = rkv_handle_get(handle, kind, action, "file");
    d = file->closer;
    wanted = (rkv_entry){.kind = ENTRY_FREE_FILE, .as.object = file};
    if (d == NULL) {
      rkv_handle_free(handle);
      rkv_file_close(file);
      return 0;
    }
  } else if (kind == KIND_DEVICE) {
    d = rkv_handle_get(handle, kind, action, "device");
    wanted = (rkv_entry){.kind = ENTRY_STOP};
  } else if (kind == KIND_TAPE) {
    rkv_tape *tape = rkv_handle_get(handle, kind, action, "tape");
    if (rkv_refuse_recording(tape->object.arena, action) != 0) return RKV_RECORDING;
    d = tape->object.arena->device;
    wanted = (rkv_entry){.kind = ENTRY_FREE_TAPE, .as.tape = tape};
  } else if (kind == KIND_NONE) {
    return rkv_refuse(RKV_STALE, "Cannot close: handle %d names nothing (was it closed already?)", handle);
  } else {
    return rkv_refuse(RKV_RANGE, "Cannot close: handle %d ends with its arena, want an arena, file, tape or device", handle);
  }
  rkv_entry *entry = rkv_queue_entry(d, 0, action);
  if (entry == NULL) return RKV_LIMIT;
  *entry = wanted;
  if (kind == KIND_ARENA) rkv_arena_close(wanted.as.object);
  else rkv_handle_free(handle);
  if (kind == KIND_TAPE) rkv_arena_disown(&wanted.as.tape->object);
  give_end(d);
  return 0;
}
