/* plan.cuh: what a unit of decode attention reads, and how it is cut into pieces: by the slot's own length alone, so that no neighbour changes
 * its bits. A unit is a KV head with its group, or, with an index per head, a head. */
#ifndef RKV_PLAN_CUH
#define RKV_PLAN_CUH
#include "common.cuh"

/* A piece is a multiple of so many rows: where an index gathers them, of what a warp takes at a time, and pieces are alike, six or twelve: there
 * are few rows then, and who has more of them is waited for. */
#define TURN 128
#define TURN_OF_INDEX 16
#define ROWS_OF_INDEX 256 /* of a piece, when there are not yet more of them */

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

/* With rowEnd, tailBegin, the newest row's position and the index as the caller knows them. */
DEVICE plan plan_with(const rkv_attend_args &a, const rkv_rows_data &kv, const rkv_layer_data &layer, int slot, int unit, int row_end, int tail_begin, int newest, const int *index) {
  const int group = layer.heads / layer.kv_heads, per_head = is_per_head(a, layer), limit = pieces_at_most(a, kv);
  plan p;
  p.slot = slot;
  p.kv_head = per_head ? unit / group : unit;
  p.head = per_head ? unit : unit * group;
  p.heads = per_head ? 1 : group;
  p.row_end = row_end;
  p.sink = most(0, least(a.sink, p.row_end));
  p.tail_begin = most(most(tail_begin, a.sink), 0);
  p.tail = most(0, p.row_end - p.tail_begin);
  p.chosen = a.index.data ? a.index.shape[2] : 0;
  p.index = index;
  p.position = kv.position + ((int64_t)slot * kv.kv_heads + p.kv_head) * kv.capacity;
  p.newest = newest;
  const int places = p.sink + p.chosen + p.tail, turn = a.index.data ? TURN_OF_INDEX : TURN; /* in 32 bits: to divide 64 is slow */
  const int wanted = a.index.data ? least(limit, (places + 6 * ROWS_OF_INDEX - 1) / (6 * ROWS_OF_INDEX) * 6) : limit;
  p.piece_rows = most(1, ((places + wanted - 1) / most(1, wanted) + turn - 1) / turn) * turn;
  p.pieces = (places + p.piece_rows - 1) / p.piece_rows;
  return p;
}

DEVICE plan plan_of(const rkv_attend_args &a, const rkv_rows_data &kv, const rkv_layer_data &layer, int slot, int unit) {
  const int *index = a.index.data ? (const int *)a.index.data + ((int64_t)slot * a.index.shape[1] + unit) * a.index.shape[2] : NULL;
  const int row_end = kv.row_end[slot], head = is_per_head(a, layer) ? unit / (layer.heads / layer.kv_heads) : unit;
  const int newest = layer.window > 0 && row_end > 0 ? kv.position[((int64_t)slot * kv.kv_heads + head) * kv.capacity + row_end - 1] : 0;
  return plan_with(a, kv, layer, slot, unit, row_end, kv.tail_begin[slot], newest, index);
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
