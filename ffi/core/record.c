/* record.c: a recorded step. While an arena records, its ops go onto a tape; a replay is one entry of the queue, walked by native code. */
#include <stdlib.h>
#include <string.h>
#include "check.h"

int32_t rkv_record(int32_t handle) {
  static const char *action = "record a step";
  rkv_arena_object *arena = rkv_handle_get(handle, KIND_ARENA, action, "arena");
  if (arena == NULL) return RKV_STALE;
  if (rkv_refuse_recording(arena, action) != 0) return RKV_RECORDING;
  if (atomic_load(&arena->poisoned)) return rkv_refuse(RKV_POISONED, "Cannot %s: an earlier op failed (%s)", action, arena->fault);
  arena->recording = calloc(1, sizeof *arena->recording);
  if (arena->recording == NULL) return rkv_refuse(RKV_MEMORY, "Cannot %s: the process is out of memory", action);
  return 0;
}

int32_t rkv_record_end(int32_t handle) {
  static const char *action = "end a recording";
  rkv_arena_object *arena = rkv_handle_get(handle, KIND_ARENA, action, "arena");
  if (arena == NULL) return RKV_STALE;
  rkv_tape *tape = arena->recording;
  if (tape == NULL) return rkv_refuse(RKV_RECORDING, "Cannot %s: none was begun", action);
  arena->recording = NULL;
  return rkv_arena_own(arena, &tape->object, tape->entries, KIND_TAPE);
}

int32_t rkv_replay(int32_t handle) {
  static const char *action = "replay a step";
  rkv_tape *tape = rkv_handle_get(handle, KIND_TAPE, action, "tape");
  if (tape == NULL) return RKV_STALE;
  rkv_arena_object *arena = tape->object.arena;
  if (rkv_refuse_recording(arena, action) != 0) return RKV_RECORDING;
  for (int32_t i = 0; i < tape->arena_count; i++) {
    if (rkv_handle_kind(tape->arenas[i]) == KIND_ARENA) continue;
    return rkv_refuse(RKV_STALE, "Cannot %s: an arena that holds tensors or weights of its ops was closed", action);
  }
  rkv_entry *entry = rkv_queue_entry(arena->device, RKV_KEPT, action);
  if (entry == NULL) return RKV_LIMIT;
  entry->kind = ENTRY_REPLAY;
  entry->arena = arena;
  entry->as.tape = tape;
  rkv_queue_give(arena->device);
  return 0;
}

/* Notes a checked op on its arena's tape, or gives it to the queue. */
int32_t rkv_submit(rkv_check *c, rkv_op_id op, const void *args, size_t bytes) {
  if (c->code != 0) return c->code;
  rkv_arena_object *arena = c->arena;
  rkv_tape *tape = arena->recording;
  rkv_entry *entry;
  if (tape != NULL) {
    if (tape->count == tape->room) {
      int32_t room = tape->room == 0 ? 256 : 2 * tape->room;
      rkv_entry *entries = realloc(tape->entries, (size_t)room * sizeof *entries);
      if (entries == NULL) return rkv_refuse(RKV_MEMORY, "Cannot %s: the process is out of memory", c->action);
      tape->entries = entries;
      tape->room = room;
    }
    entry = &tape->entries[tape->count++];
  } else if ((entry = rkv_queue_entry(arena->device, RKV_KEPT, c->action)) == NULL) {
    return RKV_LIMIT;
  }
  entry->kind = ENTRY_OP;
  entry->arena = arena;
  entry->op = (int32_t)op;
  memcpy(entry->as.args, args, bytes);
  if (tape == NULL) rkv_queue_give(arena->device);
  return 0;
}
