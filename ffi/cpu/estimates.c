/* estimates.c: the fourth source of decode attention. A cluster that was not chosen enters as one row, its centroid with the mean of its
 * values, as often as it has members. It is merged into what attention over rows has given, by log-sum-exp.
 *
 * Clusters are cut into pieces of RKV_PIECE; each makes a partial softmax (sum of values, largest logit, sum of probabilities) and these are
 * merged in piece order, after the rows. */
#include "attention.h"
#include "dots.h"

#define PARTIAL(dim) ((dim) + 2)

static int32_t piece_count(const rkv_attend_estimates_args *op) { return rkv_ceil_div(op->centroids.shape[2], RKV_PIECE); }
static float *partial_of(const rkv_attend_estimates_args *op, int32_t slot, int32_t head, int32_t piece) {
  return (float *)op->work.data + (((int64_t)slot * op->layer->heads + head) * piece_count(op) + piece) * PARTIAL(op->layer->head_dim);
}
/* ln(size) of a head's clusters, -inf for those that take no part. */
static const float *bias_of(const rkv_attend_estimates_args *op, int32_t slot, int32_t head) {
  const int32_t n = op->bias.shape[1];
  return (const float *)op->bias.data + ((int64_t)slot * n + head / (op->layer->heads / n)) * op->bias.shape[2];
}

/* Adds how many clusters were estimated to the slot's counter, once per KV head. */
static void count_estimates(const rkv_attend_estimates_args *op, int32_t slot) {
  const int32_t n = op->bias.shape[1], most = op->bias.shape[2];
  const float *bias = (const float *)op->bias.data + (int64_t)slot * n * most;
  int64_t count = 0;
  for (int64_t i = 0; i < (int64_t)n * most; i++) count += bias[i] > -INFINITY;
  op->rows->attended[(int64_t)slot * 4 + 3] += count / (n / op->layer->kv_heads);
}

int32_t RKV_FN(rkv_attend_estimates_pieces)(const void *args, int32_t stage) {
  const rkv_attend_estimates_args *op = args;
  if (stage > 1 || rkv_active_count(op->rows->active, op->rows->slots) == 0) return RKV_DONE;
  return op->rows->slots * op->layer->kv_heads * (stage ? 1 : piece_count(op));
}

/* to[dim] = sum over the listed rows of p * mean. */
static void weigh(float *to, const float *means, const int32_t *list, const float *p, int32_t rows, int32_t dim) {
  int32_t d = 0;
  for (; d + 2 * RKV_LANES <= dim; d += 2 * RKV_LANES) {
    rkv_vec a = {0}, b = {0};
    for (int32_t i = 0; i < rows; i++) {
      const float *mean = means + (int64_t)list[i] * dim + d;
      a = rkv_fma(rkv_set1(p[i]), rkv_load(mean), a);
      b = rkv_fma(rkv_set1(p[i]), rkv_load(mean + RKV_LANES), b);
    }
    rkv_store(to + d, a);
    rkv_store(to + d + RKV_LANES, b);
  }
  for (; d < dim; d += RKV_LANES) {
    const int32_t n = rkv_min_int(RKV_LANES, dim - d);
    rkv_vec a = {0};
    for (int32_t i = 0; i < rows; i++) a = rkv_fma(rkv_set1(p[i]), rkv_load_part(means + (int64_t)list[i] * dim + d, n), a);
    rkv_store_part(to + d, a, n);
  }
}

typedef struct {
  float s[RKV_PIECE + RKV_LANES]; /* logits, then probabilities of the clusters that take part */
  int32_t list[RKV_PIECE];
} scores;

/* The partial softmax of one head over clusters [first, first + count). */
static void estimate_piece(const rkv_attend_estimates_args *op, int32_t slot, int32_t head, int32_t first, int32_t count, float *to, scores *t) {
  const int32_t dim = op->layer->head_dim, most = op->centroids.shape[2], group = op->layer->heads / op->layer->kv_heads;
  const int64_t plane = ((int64_t)slot * op->layer->kv_heads + head / group) * most + first;
  const float *centroids = (const float *)op->centroids.data + plane * dim, *means = (const float *)op->means.data + plane * dim;
  const float *q = (const float *)op->q.data + ((int64_t)slot * op->layer->heads + head) * dim, *bias = bias_of(op, slot, head) + first;
  float largest = -INFINITY;
  int32_t rows = 0;
  for (int32_t c = 0; c < count; c += RKV_LANES) {
    const int32_t n = rkv_min_int(RKV_LANES, count - c);
    rkv_vec x = rkv_dots(q, (const char *)(centroids + (int64_t)c * dim), (size_t)dim * 4, n - 1, dim, RKV_F32) * rkv_set1(op->layer->scale);
    if (op->layer->soft_cap > 0) x = rkv_soft_cap(x, op->layer->soft_cap);
    for (int32_t i = 0; i < n; i++)
      if (bias[c + i] > -INFINITY) {
        t->list[rows] = c + i;
        t->s[rows] = x[i] + bias[c + i];
        largest = t->s[rows] > largest ? t->s[rows] : largest;
        rows++;
      }
  }
  for (int32_t i = rows; i % RKV_LANES; i++) t->s[i] = -INFINITY;
  rkv_vec sum = {0};
  for (int32_t i = 0; i < rows; i += RKV_LANES) {
    const rkv_vec p = rkv_exp(rkv_load(t->s + i) - rkv_set1(largest));
    rkv_store(t->s + i, p);
    sum += p;
  }
  weigh(to, means, t->list, t->s, rows, dim);
  to[dim] = largest;
  to[dim + 1] = rkv_sum(sum);
}

static void merge_head(const rkv_attend_estimates_args *op, int32_t slot, int32_t head, float *total /*[dim + 2]*/) {
  const int32_t dim = op->layer->head_dim;
  const int64_t row = (int64_t)slot * op->layer->heads + head;
  float *attended = (float *)op->attended.data + row * dim, *lse = (float *)op->lse.data + row;
  memcpy(total, attended, (size_t)dim * 4);
  total[dim] = *lse;
  total[dim + 1] = *lse == -INFINITY ? 0 : 1;
  for (int32_t i = 0; i < piece_count(op); i++) rkv_merge_softmax(total, partial_of(op, slot, head, i), dim);
  const float sum = total[dim + 1], inverse = sum == 0 ? 0 : 1 / sum;
  for (int32_t d = 0; d < dim; d++) attended[d] = total[d] * inverse;
  *lse = total[dim] + logf(sum);
}

void RKV_FN(rkv_attend_estimates_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  const rkv_attend_estimates_args *op = args;
  const int32_t kv_heads = op->layer->kv_heads, group = op->layer->heads / kv_heads, most = op->centroids.shape[2];
  const int32_t units = op->rows->slots * kv_heads, slot = piece % units / kv_heads, kv_head = piece % kv_heads, number = piece / units;
  if (!op->rows->active[slot]) return;
  for (int32_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
    if (stage == 1) merge_head(op, slot, head, scratch);
    else estimate_piece(op, slot, head, number * RKV_PIECE, rkv_min_int(RKV_PIECE, most - number * RKV_PIECE), partial_of(op, slot, head, number), scratch);
  }
  if (stage == 1 && kv_head == 0) count_estimates(op, slot);
}
