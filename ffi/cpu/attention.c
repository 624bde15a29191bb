/* attention.c: decode attention of one query per slot over sink rows, chosen rows and the tail. Every row is read once for all heads of its
 * group, so this is bound by memory as long as a group is small.
 *
 * What a KV head attends is a list of places: sink, index, tail, one after another. Every RKV_PIECE of them make a partial softmax (sum of
 * values, largest logit, sum of probabilities), and these are merged in order. A piece of work is up to TOGETHER partials of one head: while
 * one is computed, the keys of the next are on their way. */
#include "attention.h"

#define HEADS 4               /* heads that share a pass over the rows: 16 accumulators with 16 lanes */

#define TOGETHER 4
#define ENOUGH_PIECES 16      /* more partials share a piece only when as many pieces are left */

/* A partial in work: [dim] sum of probability * value, then the largest logit, then the sum of probabilities. */
#define PARTIAL(dim) ((dim) + 2)

/* The places of one unit: a KV head, or, with an index per head, a head. */
typedef struct {
  int32_t slot, kv_head, head, heads;         /* query heads [head, head + heads) */
  int32_t sink, chosen, tail, tail_begin;     /* places of each source; the first row of the tail */
  int32_t partials, partial_rows;
  const int32_t *index, *position;
  int32_t row_end, newest;                    /* newest: position of the query */
} plan;

static int32_t partial_limit(const rkv_attend_args *op) { return rkv_ceil_div(op->rows->capacity, RKV_PIECE) + 2; }
static int32_t is_per_head(const rkv_attend_args *op) { return op->index.data && op->index.shape[1] != op->layer->kv_heads; }
static int32_t units_of(const rkv_attend_args *op) { return is_per_head(op) ? op->layer->heads : op->layer->kv_heads; }

static plan plan_of(const rkv_attend_args *op, int32_t slot, int32_t unit) {
  const rkv_rows_data *kv = op->rows;
  const int32_t group = op->layer->heads / op->layer->kv_heads, per_head = is_per_head(op), row_end = kv->row_end[slot];
  plan p = {.slot = slot, .kv_head = per_head ? unit / group : unit, .head = per_head ? unit : unit * group, .heads = per_head ? 1 : group, .row_end = row_end};
  p.sink = rkv_max_int(0, rkv_min_int(op->sink, row_end));
  p.tail_begin = rkv_max_int(rkv_max_int(kv->tail_begin[slot], op->sink), 0);
  p.tail = rkv_max_int(0, row_end - p.tail_begin);
  if (op->index.data) {                                              /* valid entries come first: where do they end? */
    const int32_t budget = op->index.shape[2];
    int32_t low = 0, high = budget;
    p.index = (const int32_t *)op->index.data + ((int64_t)slot * op->index.shape[1] + unit) * budget;
    while (low < high) {
      const int32_t middle = low + (high - low) / 2;
      if (p.index[middle] >= 0) low = middle + 1;
      else high = middle;
    }
    p.chosen = low;
  }
  p.position = kv->position + ((int64_t)slot * kv->kv_heads + p.kv_head) * kv->capacity;
  p.newest = row_end > 0 ? p.position[row_end - 1] : 0;
  const int64_t places = (int64_t)p.sink + p.chosen + p.tail, limit = partial_limit(op);
  /* an index that repeats rows can have more places than there is room for partials: then partials are longer */
  p.partial_rows = (int32_t)((places + limit * RKV_PIECE - 1) / (limit * RKV_PIECE)) * RKV_PIECE;
  p.partials = p.partial_rows ? (int32_t)((places + p.partial_rows - 1) / p.partial_rows) : 0;
  return p;
}

static float *partial_of(const rkv_attend_args *op, const plan *p, int32_t head, int32_t partial) {
  return (float *)op->work.data + (((int64_t)p->slot * op->layer->heads + head) * partial_limit(op) + partial) * PARTIAL(op->layer->head_dim);
}

static int32_t sees(const rkv_attend_args *op, const plan *p, int32_t row) {
  return op->layer->window <= 0 || p->newest - p->position[row] < op->layer->window;
}

/* Rows of places [place, end). Entries that name no row, and rows outside the window, are left out. */
static int32_t list_rows(int32_t *list, const rkv_attend_args *op, const plan *p, int32_t place, int32_t end) {
  int32_t n = 0;
  for (; place < rkv_min_int(end, p->sink); place++) list[n++] = place;
  for (; place < rkv_min_int(end, p->sink + p->chosen); place++) {
    const int32_t row = p->index[place - p->sink];
    if (row >= 0 && row < p->row_end) list[n++] = row;
  }
  const int32_t shift = p->tail_begin - p->sink - p->chosen;
  if (op->layer->window <= 0)
    for (; place < end; place++) list[n++] = place + shift;
  for (; place < end; place++)
    if (sees(op, p, place + shift)) list[n++] = place + shift;
  return n;
}

static void start_softmax(float *to /*[dim + 2]*/, int32_t dim) {
  memset(to, 0, (size_t)dim * 4);
  to[dim] = -INFINITY;
  to[dim + 1] = 0;
}

/* ---- stage 0: partials ---------------------------------------------------------------------------------------------------------------- */

/* Partials of a piece: more than one when that leaves work enough for everybody. */
static int32_t together_of(const rkv_attend_args *op) {
  const rkv_rows_data *kv = op->rows;
  int64_t places = 0;
  for (int32_t s = 0; s < kv->slots; s++)
    if (kv->active[s]) places += (int64_t)op->sink + (op->index.data ? op->index.shape[2] : 0) + kv->row_end[s] - rkv_min_int(kv->tail_begin[s], kv->row_end[s]);
  const int64_t fit = places * units_of(op) / (RKV_PIECE * ENOUGH_PIECES);
  return fit < 1 ? 1 : fit < TOGETHER ? (int32_t)fit : TOGETHER;
}

/* Partials of the unit that has the most. */
static int32_t most_partials(const rkv_attend_args *op) {
  const rkv_rows_data *kv = op->rows;
  int32_t most = 0;
  for (int32_t s = 0; s < kv->slots; s++)
    if (kv->active[s])
      for (int32_t u = 0; u < units_of(op); u++) most = rkv_max_int(most, plan_of(op, s, u).partials);
  return most;
}

/* A unit that has fewer rows than the longest leaves its last pieces empty. */
int32_t RKV_FN(rkv_attend_pieces)(const void *args, int32_t stage) {
  const rkv_attend_args *op = args;
  if (stage > 1 || rkv_active_count(op->rows->active, op->rows->slots) == 0) return RKV_DONE;
  return rkv_max_int(1, op->rows->slots * units_of(op) * (stage ? 1 : rkv_ceil_div(most_partials(op), together_of(op))));
}

/* Partials [first, end). */
static void attend_partials(const rkv_attend_args *op, const plan *p, int32_t first, int32_t end, char *scratch) {
  const rkv_rows_data *kv = op->rows;
  const int32_t dim = op->layer->head_dim;
  const int64_t plane = ((int64_t)p->slot * kv->kv_heads + p->kv_head) * kv->capacity;
  int32_t *lists[2] = {(int32_t *)scratch, (int32_t *)(scratch + RKV_STEP_LIST)};
  scratch += 2 * RKV_STEP_LIST;
  rkv_step step = {
    .keys = (const char *)kv->keys.data + (size_t)plane * rkv_row_bytes(kv->keys.dtype, dim), .key_dtype = kv->keys.dtype,
    .values = (const char *)kv->values.data + (size_t)plane * rkv_row_bytes(kv->values.dtype, dim), .value_dtype = kv->values.dtype,
    .dim = dim, .scale = op->layer->scale, .soft_cap = op->layer->soft_cap,
    .cold = 1, .s = (float *)scratch, .sums = (float *)(scratch + RKV_STEP_LOGITS),
  };
  const int32_t places = rkv_min_int(p->sink + p->chosen + p->tail, end * p->partial_rows);
  int32_t place = first * p->partial_rows, turn = 0;
  step.next_rows = list_rows(lists[0], op, p, place, rkv_min_int(places, place + RKV_PIECE));
  for (; place < places; place += RKV_PIECE, turn ^= 1) {
    step.list = lists[turn];
    step.rows = step.next_rows;
    step.next = lists[turn ^ 1];
    step.next_rows = list_rows(lists[turn ^ 1], op, p, place + RKV_PIECE, rkv_min_int(places, place + 2 * RKV_PIECE));
    const int32_t partial = place / p->partial_rows, begins = place % p->partial_rows == 0;
    for (int32_t h = 0; h < p->heads; h += HEADS) {
      const int32_t heads = rkv_min_int(HEADS, p->heads - h);
      if (step.rows) RKV_FN(rkv_attend_rows)(&step, (const float *)op->q.data + ((int64_t)p->slot * op->layer->heads + p->head + h) * dim, heads);
      for (int32_t g = 0; g < heads; g++) {
        float *to = partial_of(op, p, p->head + h + g, partial);
        if (begins) start_softmax(to, dim);
        if (step.rows) rkv_merge_softmax(to, step.sums + (int64_t)g * PARTIAL(dim), dim);
      }
      step.cold = 0;
    }
  }
}

/* ---- stage 1: merge, count -------------------------------------------------------------------------------------------------------------- */

static void merge_head(const rkv_attend_args *op, const plan *p, int32_t head, float *total /*[dim + 2]*/) {
  const int32_t dim = op->layer->head_dim;
  const int64_t row = (int64_t)p->slot * op->layer->heads + head;
  start_softmax(total, dim);
  for (int32_t i = 0; i < p->partials; i++) rkv_merge_softmax(total, partial_of(op, p, head, i), dim);
  const float sum = total[dim + 1], inverse = sum == 0 ? 0 : 1 / sum;
  float *to = (float *)op->attended.data + row * dim;
  for (int32_t d = 0; d < dim; d++) to[d] = total[d] * inverse;
  if (op->lse.data) ((float *)op->lse.data)[row] = total[dim] + logf(sum);
}

/* Adds the rows that this step read to the slot's counters. */
static void count_rows(const rkv_attend_args *op, int32_t slot) {
  const int32_t units = units_of(op);
  int64_t sink = 0, chosen = 0, tail = 0, *counters = op->rows->attended + (int64_t)slot * 4;
  for (int32_t u = 0; u < units; u++) {
    const plan p = plan_of(op, slot, u);
    sink += p.sink;
    for (int32_t i = 0; i < p.chosen; i++) chosen += p.index[i] >= 0 && p.index[i] < p.row_end;
    if (op->layer->window <= 0) tail += p.tail;
    else
      for (int32_t i = 0; i < p.tail; i++) tail += sees(op, &p, p.tail_begin + i);
  }
  const int32_t share = units / op->layer->kv_heads;
  counters[0] += sink / share;
  counters[1] += chosen / share;
  counters[2] += tail / share;
}

void RKV_FN(rkv_attend_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  const rkv_attend_args *op = args;
  const int32_t units = units_of(op), slot = piece % (op->rows->slots * units) / units, unit = piece % units;
  if (!op->rows->active[slot]) return;
  const plan p = plan_of(op, slot, unit);
  if (stage == 0) {
    const int32_t together = together_of(op), first = piece / (op->rows->slots * units) * together;
    if (first < p.partials) attend_partials(op, &p, first, rkv_min_int(p.partials, first + together), scratch);
    return;
  }
  for (int32_t h = 0; h < p.heads; h++) merge_head(op, &p, p.head + h, scratch);
  if (unit == 0) count_rows(op, slot);
}
