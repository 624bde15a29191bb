/* check_sample.c: what ops between logits and the next token accept. */
#include "check.h"

/* Rows [first, first + count) of [n, vocab] logits, of the options, and of what says which are active. */
static void check_rows(rkv_check *c, const rkv_view *logits, const rkv_view *active, const rkv_view *options, int32_t first, int32_t count) {
  rkv_check_range(c, "first", first, 0, INT32_MAX);
  rkv_check_range(c, "count", count, 1, INT32_MAX - (int64_t)first);
  SHAPE(c, logits, "logits", LEAST((int64_t)first + count), LEAST(1));
  SHAPE(c, active, "active", LEAST((int64_t)first + count));
  SHAPE(c, options, "options", LEAST((int64_t)first + count), RKV_SAMPLING);
}

int32_t rkv_tally(int32_t counts, int32_t token, int32_t active) {
  rkv_check c = {.action = "count tokens"};
  rkv_tally_args a;
  rkv_check_tensor(&c, &a.counts, counts, "counts", I32_ONLY);
  rkv_check_tensor(&c, &a.token, token, "token", I32_ONLY);
  rkv_check_tensor(&c, &a.active, active, "active", I32_ONLY);
  SHAPE(&c, &a.token, "token", ANY);
  if (c.code == 0) {
    SHAPE(&c, &a.counts, "counts", a.token.shape[0], LEAST(1));
    SHAPE(&c, &a.active, "active", a.token.shape[0]);
  }
  return rkv_submit(&c, RKV_OP_tally, &a, sizeof a);
}

int32_t rkv_penalize(int32_t adjusted, int32_t logits, int32_t counts, int32_t bias, int32_t active, int32_t options, int32_t first, int32_t count) {
  rkv_check c = {.action = "penalize"};
  rkv_penalize_args a = {.first = first, .count = count};
  rkv_check_tensor(&c, &a.adjusted, adjusted, "adjusted", F32_ONLY);
  rkv_check_tensor(&c, &a.logits, logits, "logits", F32_ONLY);
  rkv_check_tensor(&c, &a.counts, counts, "counts", I32_ONLY);
  rkv_check_tensor(&c, &a.bias, bias, "bias", F32_ONLY);
  rkv_check_optional(&c, &a.active, active, "active", I32_ONLY);
  rkv_check_tensor(&c, &a.options, options, "options", F32_ONLY);
  check_rows(&c, &a.logits, &a.active, &a.options, first, count);
  if (c.code == 0) {
    SHAPE(&c, &a.adjusted, "adjusted", LEAST((int64_t)first + count), rkv_width(&a.logits));
    SHAPE(&c, &a.counts, "counts", LEAST((int64_t)first + count), rkv_width(&a.logits));
    SHAPE(&c, &a.bias, "bias", LEAST((int64_t)first + count), rkv_width(&a.logits));
  }
  return rkv_submit(&c, RKV_OP_penalize, &a, sizeof a);
}

int32_t rkv_sample(int32_t token, int32_t logprob, int32_t logits, int32_t adjusted, int32_t active, int32_t position, int32_t options, int32_t first, int32_t count) {
  rkv_check c = {.action = "sample"};
  rkv_sample_args a = {.first = first, .count = count};
  rkv_check_tensor(&c, &a.token, token, "token", I32_ONLY);
  rkv_check_tensor(&c, &a.logprob, logprob, "logprob", F32_ONLY);
  rkv_check_tensor(&c, &a.logits, logits, "logits", F32_ONLY);
  rkv_check_tensor(&c, &a.adjusted, adjusted, "adjusted", F32_ONLY);
  rkv_check_optional(&c, &a.active, active, "active", I32_ONLY);
  rkv_check_tensor(&c, &a.position, position, "position", I32_ONLY);
  rkv_check_tensor(&c, &a.options, options, "options", F32_ONLY);
  check_rows(&c, &a.logits, &a.active, &a.options, first, count);
  if (c.code == 0) {
    SHAPE(&c, &a.adjusted, "adjusted", LEAST((int64_t)first + count), rkv_width(&a.logits));
    rkv_check_range(&c, "vocab", rkv_width(&a.logits), 1, 1 << 24);
  }
  SHAPE(&c, &a.token, "token", LEAST((int64_t)first + count));
  SHAPE(&c, &a.logprob, "logprob", LEAST((int64_t)first + count));
  SHAPE(&c, &a.position, "position", LEAST((int64_t)first + count));
  return rkv_submit(&c, RKV_OP_sample, &a, sizeof a);
}

int32_t rkv_likeliest(int32_t tokens, int32_t logprobs, int32_t logits, int32_t active, int32_t options, int32_t first, int32_t count) {
  rkv_check c = {.action = "find the likeliest"};
  rkv_likeliest_args a = {.first = first, .count = count};
  rkv_check_tensor(&c, &a.tokens, tokens, "tokens", I32_ONLY);
  rkv_check_tensor(&c, &a.logprobs, logprobs, "logprobs", F32_ONLY);
  rkv_check_tensor(&c, &a.logits, logits, "logits", F32_ONLY);
  rkv_check_optional(&c, &a.active, active, "active", I32_ONLY);
  rkv_check_tensor(&c, &a.options, options, "options", F32_ONLY);
  check_rows(&c, &a.logits, &a.active, &a.options, first, count);
  SHAPE(&c, &a.tokens, "tokens", LEAST((int64_t)first + count), LEAST(1));
  if (c.code == 0) {
    rkv_check_range(&c, "most", rkv_width(&a.tokens), 1, 64);
    SHAPE(&c, &a.logprobs, "logprobs", LEAST((int64_t)first + count), rkv_width(&a.tokens));
  }
  return rkv_submit(&c, RKV_OP_likeliest, &a, sizeof a);
}
