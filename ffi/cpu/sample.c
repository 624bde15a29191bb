/* sample.c: from logits to the next token: penalties, the likeliest, the draw. A row is one piece. */
#include "cpu.h"
#include "simd.h"
#include "ranking.h"
#include <math.h>

#define ROW(view, row, width) ((float *)(view).data + (int64_t)(row) * (width))

static int32_t vocab_of(const rkv_view *logits) { return logits->shape[logits->rank - 1]; }

/* The largest of a row and its first place, lane by lane; -1 where no logit is a number. NaN takes no part. */
static int32_t first_largest(const float *logits, int32_t vocab, float *largest) {
  rkv_vec best = rkv_set1(-INFINITY);
  int32_t i = 0;
  for (; i + RKV_LANES <= vocab; i += RKV_LANES) best = rkv_max(rkv_load(logits + i), best);
  float top = rkv_max_lane(best);
  for (; i < vocab; i++) top = logits[i] > top ? logits[i] : top;
  *largest = top;
  for (i = 0; i < vocab && logits[i] != top; i++) {}
  return i == vocab ? -1 : i;
}

/* log(sum exp(logit - shift)); NaN takes no part. */
static float log_sum(const float *logits, int32_t vocab, float shift) {
  const rkv_vec from = rkv_set1(shift);
  rkv_vec sum = {0};
  for (int32_t i = 0; i < vocab; i += RKV_LANES) {
    const int32_t n = vocab - i;
    const rkv_vec v = n >= RKV_LANES ? rkv_load(logits + i) : rkv_load_part(logits + i, n);
    rkv_vec counted = rkv_select(v == v, rkv_exp(v - from), (rkv_vec){0});
    for (int32_t k = n; k < RKV_LANES; k++) counted[k] = 0;
    sum += counted;
  }
  return logf(rkv_sum(sum));
}

int32_t RKV_FN(rkv_greedy_pieces)(const void *args, int32_t stage) { return stage ? RKV_DONE : ((const rkv_greedy_args *)args)->count; }

void RKV_FN(rkv_greedy_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  const rkv_greedy_args *op = args;
  const int32_t row = op->first + piece, vocab = vocab_of(&op->logits), *active = op->active.data;
  const float *logits = ROW(op->logits, row, vocab);
  float largest;
  (void)stage, (void)scratch;
  if (active && !active[row]) return;
  const int32_t token = first_largest(logits, vocab, &largest);
  ((int32_t *)op->token.data)[row] = token;
  ((float *)op->logprob.data)[row] = token < 0 ? NAN : -log_sum(logits, vocab, largest);
}

int32_t RKV_FN(rkv_tally_pieces)(const void *args, int32_t stage) {
  const rkv_tally_args *op = args;
  const int32_t vocab = vocab_of(&op->counts), *token = op->token.data, *active = op->active.data;
  (void)stage;
  for (int32_t s = 0; s < op->token.shape[0]; s++)
    if (active[s] && token[s] >= 0 && token[s] < vocab) ((int32_t *)op->counts.data)[(int64_t)s * vocab + token[s]] += 2;
  return RKV_DONE;
}
void RKV_FN(rkv_tally_run)(const void *args, int32_t stage, int32_t piece, void *scratch) { (void)args, (void)stage, (void)piece, (void)scratch; }

int32_t RKV_FN(rkv_penalize_pieces)(const void *args, int32_t stage) { return stage ? RKV_DONE : ((const rkv_penalize_args *)args)->count; }

void RKV_FN(rkv_penalize_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  const rkv_penalize_args *op = args;
  const int32_t row = op->first + piece, vocab = vocab_of(&op->logits), *active = op->active.data;
  const float *options = ROW(op->options, row, RKV_SAMPLING), *logits = ROW(op->logits, row, vocab), *bias = ROW(op->bias, row, vocab);
  const float repetition = options[RKV_REPETITION], frequency = options[RKV_FREQUENCY], presence = options[RKV_PRESENCE];
  const int32_t *counts = (const int32_t *)op->counts.data + (int64_t)row * vocab;
  float *adjusted = ROW(op->adjusted, row, vocab);
  (void)stage, (void)scratch;
  if ((active && !active[row]) || options[RKV_ADJUSTS] == 0) return;
  for (int32_t i = 0; i < vocab; i++) {
    const float generated = (float)(counts[i] >> 1);
    float x = logits[i];
    if (counts[i] > 0) x = x > 0 ? x / repetition : x * repetition;
    if (generated > 0) x -= frequency * generated + presence;
    adjusted[i] = x + bias[i];
  }
}

/* ---- the draw ---- */

#define RKV_ONE_WEIGHT 1099511627776.0f /* 2^40: of the largest logit. 2^24 tokens of it still fit into 64 bits */

/* What is drawn from: logits, and how far the order by rank goes. */
typedef struct {
  const float *x;
  int32_t vocab;
  float largest, temperature;
  uint32_t rank; /* of the last candidates */
  int32_t ties;  /* how many of that rank take part, the first ones by id */
} rkv_urn;

/* Weights of ids [i, i + RKV_LANES) that take part; 0 for all others. *ties counts down. Returns how many ids there are. */
RKV_INLINE int32_t weights_of(const rkv_urn *urn, int32_t i, uint64_t *weights, int32_t *ties) {
  const int32_t n = rkv_min_int(RKV_LANES, urn->vocab - i);
  const rkv_vec x = n == RKV_LANES ? rkv_load(urn->x + i) : rkv_load_part(urn->x + i, n), t = rkv_set1(urn->temperature);
  const rkv_vec w = rkv_exp(x / t - rkv_set1(urn->largest / urn->temperature)) * rkv_set1(RKV_ONE_WEIGHT);
  for (int32_t k = 0; k < n; k++) {
    weights[k] = 0;
    if (!(w[k] >= 1)) continue;
    const uint32_t rank = rkv_rank_of(urn->x[i + k]);
    if (rank > urn->rank || (rank == urn->rank && (*ties)-- <= 0)) continue;
    weights[k] = (uint64_t)w[k];
  }
  return n;
}

/* Sum of the weights that are at least `lightest`. */
static uint64_t weight_of(const rkv_urn *urn, uint64_t lightest) {
  uint64_t sum = 0, weights[RKV_LANES];
  int32_t ties = urn->ties;
  for (int32_t i = 0; i < urn->vocab; i += RKV_LANES) {
    const int32_t n = weights_of(urn, i, weights, &ties);
    for (int32_t k = 0; k < n; k++) sum += weights[k] >= lightest ? weights[k] : 0;
  }
  return sum;
}

/* Cuts to the shortest prefix whose weights reach `wanted` (at least 1): the weights by one digit of their rank after the other. */
static void cut_by_weight(rkv_urn *urn, uint64_t wanted, uint64_t *sums /*[RKV_DIGITS]*/) {
  static const int32_t shifts[] = {21, 10, 0}, bits[] = {11, 11, 10};
  uint64_t weights[RKV_LANES], each = 0;
  uint32_t prefix = 0;
  for (int32_t d = 0; d < 3; d++) {
    const uint32_t mask = (1u << bits[d]) - 1;
    int32_t ties = urn->ties;
    memset(sums, 0, ((size_t)mask + 1) * sizeof *sums);
    for (int32_t i = 0; i < urn->vocab; i += RKV_LANES) {
      const int32_t n = weights_of(urn, i, weights, &ties);
      for (int32_t k = 0; k < n; k++) {
        if (weights[k] == 0) continue;
        const uint32_t rank = rkv_rank_of(urn->x[i + k]);
        if (d > 0 && rank >> (shifts[d] + bits[d]) != prefix) continue;
        sums[rank >> shifts[d] & mask] += weights[k];
      }
    }
    uint32_t digit = 0;
    for (; digit < mask && wanted > sums[digit]; digit++) wanted -= sums[digit];
    prefix = prefix << bits[d] | digit;
  }
  for (int32_t i = 0; i < urn->vocab; i++) { /* equal logits have equal weights: that of one of them says how many are needed */
    if (rkv_rank_of(urn->x[i]) != prefix) continue;
    const rkv_vec w = rkv_exp(rkv_set1(urn->x[i] / urn->temperature) - rkv_set1(urn->largest / urn->temperature)) * rkv_set1(RKV_ONE_WEIGHT);
    each = (uint64_t)w[0];
    break;
  }
  const uint64_t ties = each == 0 ? 1 : (wanted + each - 1) / each;
  if (prefix == urn->rank && ties > (uint64_t)urn->ties) return;
  urn->rank = prefix;
  urn->ties = ties > INT32_MAX ? INT32_MAX : (int32_t)ties;
}

/* Philox 2x32-10: 64 random bits that are a function of key and counter alone. */
static uint64_t philox(uint32_t key, uint32_t low) {
  uint32_t high = 0;
  for (int32_t round = 0; round < 10; round++) {
    const uint64_t product = 0xd256d193ull * low;
    low = (uint32_t)(product >> 32) ^ key ^ high;
    high = (uint32_t)product;
    key += 0x9e3779b9u;
  }
  return (uint64_t)low << 32 | high;
}

/* A whole number of an option, which may be any float that a caller wrote: no number and what is below 0 count as 0. */
static uint64_t whole(double option, double most) { return option > 0 ? (uint64_t)(option < most ? option : most) : 0; }

static int32_t draw(rkv_urn *urn, const float *options, int32_t position, void *scratch) {
  const int32_t top_k = (int32_t)whole(options[RKV_TOP_K], INT32_MAX);
  uint64_t weights[RKV_LANES];
  if (top_k > 0 && top_k < urn->vocab) urn->rank = rkv_rank_of_kth(scratch, urn->x, urn->vocab, (rkv_place){0, -1}, top_k, &urn->ties);
  if (options[RKV_TOP_P] < 1) {
    const uint64_t wanted = whole(ceil((double)options[RKV_TOP_P] * (double)weight_of(urn, 0)), 0x1p63);
    cut_by_weight(urn, wanted > 0 ? wanted : 1, scratch);
  }
  const uint64_t lightest = whole((double)options[RKV_MIN_P] * RKV_ONE_WEIGHT, 0x1p63), sum = weight_of(urn, lightest);
  const uint32_t seed = (uint32_t)whole(options[RKV_SEED_HIGH], 65535) << 16 | (uint32_t)whole(options[RKV_SEED_LOW], 65535);
  const uint64_t target = (uint64_t)((unsigned __int128)philox(seed, (uint32_t)position) * sum >> 64);
  uint64_t passed = 0;
  int32_t ties = urn->ties;
  for (int32_t i = 0; i < urn->vocab; i += RKV_LANES) {
    const int32_t n = weights_of(urn, i, weights, &ties);
    for (int32_t k = 0; k < n; k++) {
      if (weights[k] < lightest) continue;
      passed += weights[k];
      if (passed > target) return i + k;
    }
  }
  return -1; /* not reached: the largest weighs 2^40 */
}

int32_t RKV_FN(rkv_sample_pieces)(const void *args, int32_t stage) { return stage ? RKV_DONE : ((const rkv_sample_args *)args)->count; }

void RKV_FN(rkv_sample_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  const rkv_sample_args *op = args;
  const int32_t row = op->first + piece, vocab = vocab_of(&op->logits), *active = op->active.data;
  const float *options = ROW(op->options, row, RKV_SAMPLING), *logits = ROW(op->logits, row, vocab);
  const float *x = options[RKV_ADJUSTS] == 0 ? logits : ROW(op->adjusted, row, vocab);
  rkv_urn urn = {x, vocab, 0, options[RKV_TEMPERATURE], RKV_NO_RANK - 1, INT32_MAX};
  float largest;
  (void)stage;
  if (active && !active[row]) return;
  int32_t token = first_largest(x, vocab, &urn.largest);
  if (token >= 0 && urn.temperature > 0 && isfinite(urn.largest / urn.temperature)) token = draw(&urn, options, ((const int32_t *)op->position.data)[row], scratch);
  ((int32_t *)op->token.data)[row] = token;
  first_largest(logits, vocab, &largest);
  ((float *)op->logprob.data)[row] = token < 0 ? NAN : logits[token] - largest - log_sum(logits, vocab, largest);
}

/* ---- the likeliest ---- */

int32_t RKV_FN(rkv_likeliest_pieces)(const void *args, int32_t stage) { return stage ? RKV_DONE : ((const rkv_likeliest_args *)args)->count; }

void RKV_FN(rkv_likeliest_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  const rkv_likeliest_args *op = args;
  const int32_t row = op->first + piece, vocab = vocab_of(&op->logits), most = vocab_of(&op->tokens), *active = op->active.data;
  const int32_t wanted = rkv_min_int(most, (int32_t)whole(ROW(op->options, row, RKV_SAMPLING)[RKV_LIKELIEST], INT32_MAX));
  const float *logits = ROW(op->logits, row, vocab);
  int32_t *tokens = (int32_t *)op->tokens.data + (int64_t)row * most, found = 0, ties;
  float *logprobs = ROW(op->logprobs, row, most), largest;
  (void)stage;
  if ((active && !active[row]) || wanted <= 0) return;
  const uint32_t last = rkv_rank_of_kth(scratch, logits, vocab, (rkv_place){0, -1}, wanted, &ties);
  for (int32_t i = 0; i < vocab; i++) { /* into their places, as they are met: there are few */
    const uint32_t rank = rkv_rank_of(logits[i]);
    if (rank == RKV_NO_RANK || rank > last || (rank == last && ties-- <= 0)) continue;
    int32_t place = found++;
    for (; place > 0 && rkv_rank_of(logits[tokens[place - 1]]) > rank; place--) tokens[place] = tokens[place - 1];
    tokens[place] = i;
  }
  first_largest(logits, vocab, &largest);
  const float sum = found > 0 ? log_sum(logits, vocab, largest) : 0;
  for (int32_t k = 0; k < wanted; k++) {
    if (k >= found) tokens[k] = -1;
    logprobs[k] = k < found ? logits[tokens[k]] - largest - sum : NAN;
  }
}
