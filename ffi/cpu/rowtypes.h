/* rowtypes.h: rows of the KV cache as they lie in memory: f32, f16, bf16, or q8 (signed bytes, then one f32 scale), and their way to and
 * from f32. Kernels take a row apart by these and compute in f32. */
#ifndef RKV_ROWTYPES_H
#define RKV_ROWTYPES_H
#include "../core/ops.h"
#include "simd.h"

/* The scale of a q8 row; it stands behind `width` bytes, so it need not be aligned. */
RKV_INLINE float rkv_q8_scale(const void *row, int32_t width) {
  float scale;
  memcpy(&scale, (const char *)row + width, sizeof scale);
  return scale;
}

/* RKV_LANES elements from element i of a row on, without a q8 row's scale; the _part form as in simd.h. `dtype` is a constant at every
 * call, so that the switch is gone after inlining. */
RKV_INLINE rkv_vec rkv_row_load(int32_t dtype, const void *row, int32_t i) {
  switch (dtype) {
    case RKV_F16: return rkv_from_f16(rkv_load_half((const uint16_t *)row + i));
    case RKV_BF16: return rkv_from_bf16(rkv_load_half((const uint16_t *)row + i));
    case RKV_Q8: return rkv_from_bytes(rkv_load_bytes((const int8_t *)row + i));
    default: return rkv_load((const float *)row + i);
  }
}
RKV_INLINE rkv_vec rkv_row_load_part(int32_t dtype, const void *row, int32_t i, int32_t n) {
  switch (dtype) {
    case RKV_F16: return rkv_from_f16(rkv_load_half_part((const uint16_t *)row + i, n));
    case RKV_BF16: return rkv_from_bf16(rkv_load_half_part((const uint16_t *)row + i, n));
    case RKV_Q8: return rkv_from_bytes(rkv_load_bytes_part((const int8_t *)row + i, n));
    default: return rkv_load_part((const float *)row + i, n);
  }
}

/* A factor of the whole row: a q8 row's scale, else 1. */
RKV_INLINE float rkv_row_scale(int32_t dtype, const void *row, int32_t width) { return dtype == RKV_Q8 ? rkv_q8_scale(row, width) : 1.0f; }

#define RKV_ROW_TO_F32(dtype)                                                                             \
  {                                                                                                       \
    const rkv_vec scale = rkv_set1(rkv_row_scale(dtype, row, width));                                     \
    int32_t i = 0;                                                                                        \
    for (; i + RKV_LANES <= width; i += RKV_LANES) {                                                      \
      const rkv_vec v = rkv_row_load(dtype, row, i);                                                      \
      rkv_store(to + i, dtype == RKV_Q8 ? v * scale : v);                                                 \
    }                                                                                                     \
    if (i < width) {                                                                                      \
      const rkv_vec v = rkv_row_load_part(dtype, row, i, width - i);                                      \
      rkv_store_part(to + i, dtype == RKV_Q8 ? v * scale : v, width - i);                                 \
    }                                                                                                     \
    break;                                                                                                \
  }

/* One row of any dtype as f32. */
static inline __attribute__((unused)) void rkv_row_to_f32(float *to /*[width]*/, const void *row, int32_t dtype, int32_t width) {
  switch (dtype) {
    case RKV_F16: RKV_ROW_TO_F32(RKV_F16)
    case RKV_BF16: RKV_ROW_TO_F32(RKV_BF16)
    case RKV_Q8: RKV_ROW_TO_F32(RKV_Q8)
    default: memcpy(to, row, (size_t)width * 4);
  }
}

/* One f32 row to any dtype, to the nearest. q8: scale = largest magnitude / 127, so that the largest element is exact to a rounding; a row
 * with a NaN or an infinity gets a NaN scale: it may not pass for a number. */
static inline __attribute__((unused)) void rkv_row_from_f32(void *row, const float *from /*[width]*/, int32_t dtype, int32_t width) {
  int32_t i = 0;
  if (dtype == RKV_F32) { memcpy(row, from, (size_t)width * 4); return; }
  if (dtype == RKV_F16 || dtype == RKV_BF16) {
    uint16_t *to = row;
    for (; i + RKV_LANES <= width; i += RKV_LANES) {
      const rkv_vec v = rkv_load(from + i);
      rkv_store_half(to + i, dtype == RKV_F16 ? rkv_to_f16(v) : rkv_to_bf16(v));
    }
    if (i < width) {
      const rkv_vec v = rkv_load_part(from + i, width - i);
      rkv_store_half_part(to + i, dtype == RKV_F16 ? rkv_to_f16(v) : rkv_to_bf16(v), width - i);
    }
    return;
  }
  float largest = 0, zero = 0;                                        /* zero: 0 unless some element is not finite, then NaN */
  for (i = 0; i < width; i++) {
    const float size = __builtin_fabsf(from[i]);
    largest = size > largest ? size : largest;
    zero += size * 0.0f;
  }
  const float scale = largest / 127 + zero, inverse = largest > 0 && zero == 0 ? 127 / largest : 0;
  int8_t *to = row;
  for (i = 0; i < width; i++) {
    const float v = zero == 0 ? from[i] * inverse : 0;                /* 127 / largest may overflow for a denormal row: its elements clamp */
    to[i] = (int8_t)__builtin_rintf(v > 127 ? 127 : v < -127 ? -127 : v == v ? v : 0);
  }
  memcpy(to + width, &scale, sizeof scale);
}
#endif
