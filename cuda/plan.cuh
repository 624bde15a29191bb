/* plan.cuh: what a unit of decode attention reads, and how it is cut into pieces: by the slot's own length alone, so that no neighbour changes
 * its bits. A unit is a KV head with its group, or, with an index per head, a head. */
#ifndef RKV_PLAN_CUH
#define RKV_PLAN_CUH
#include "common.cuh"

/* A piece is some turns of rows: where they are gathered by an index, long ones, for then there are few rows and finding them takes as long as
 * reading. */
#define TURN 128
#define TURN_OF_INDEX 256

typedef struct {
  int slot, kv_head, head, heads;      /* query heads [head, head + heads) */
  int sink, chosen, tail, tail_begin;  /* places of each source; the first row of the tail */
  int pieces, piece_rows, row_end, newest;
  const int *index, *position;
} plan;

DEVICE int is_per_head(const rkv_attend_args &a, const rkv_layer_data &layer) { return a.index.data && a.index.shape[1] != layer.kv_heads; }

DEVICE int pieces_at_most(const rkv_attend_args &a, const rkv_rows_data &kv) {
  return least(a.index.data ? RKV_PIECES_OF_INDEX : RKV_PIECES, (kv.capacity + RKV_PIECE - 1) / RKV_PIECE + 2);
}

DEVICE plan plan_of(const rkv_attend_args &a, const rkv_rows_data &kv, const rkv_layer_data &layer, int slot, int unit) {
  const int group = layer.heads / layer.kv_heads, per_head = is_per_head(a, layer), limit = pieces_at_most(a, kv);
  plan p;
  p.slot = slot;
  p.kv_head = per_head ? unit / group : unit;
  p.head = per_head ? unit : unit * group;
  p.heads = per_head ? 1 : group;
  p.row_end = kv.row_end[slot];
  p.sink = most(0, least(a.sink, p.row_end));
  p.tail_begin = most(most(kv.tail_begin[slot], a.sink), 0);
  p.tail = most(0, p.row_end - p.tail_begin);
  p.chosen = a.index.data ? a.index.shape[2] : 0;
  p.index = (const int *)a.index.data + ((int64_t)slot * a.index.shape[1] + unit) * p.chosen;
  p.position = kv.position + ((int64_t)slot * kv.kv_heads + p.kv_head) * kv.capacity;
  p.newest = layer.window > 0 && p.row_end > 0 ? p.position[p.row_end - 1] : 0;
  const int places = p.sink + p.chosen + p.tail, turn = a.index.data ? TURN_OF_INDEX : TURN; /* in 32 bits: to divide 64 is slow */
  p.piece_rows = most(1, ((places + limit - 1) / limit + turn - 1) / turn) * turn;
  p.pieces = (places + p.piece_rows - 1) / p.piece_rows;
  return p;
}

/* The row at a place, or -1. */
DEVICE int row_at(const plan &p, int window, int place) {
  const int listed = place - p.sink;
  int row = place < p.sink ? place : p.tail_begin + (listed - p.chosen);
  if (listed >= 0 && listed < p.chosen) row = p.index[listed];
  if (row < 0 || row >= p.row_end) return -1;
  if (window > 0 && listed >= p.chosen && p.newest - p.position[row] >= window) return -1;
  return row;
}

#endif
