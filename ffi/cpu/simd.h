/* simd.h: one vector of RKV_LANES floats (16, 8 or 4), and all that the kernels do with it. The only file with intrinsics. Everything is
 * static inline: a function that is not would be defined once per instruction set.
 *
 * Arithmetic is written out: +, -, * round once each, and only rkv_fma fuses (where the instruction set can), so that two paths that
 * do the same operations in the same order give the same bits. */
#ifndef RKV_SIMD_H
#define RKV_SIMD_H
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

#if defined(__AVX512F__)
#define RKV_LANES 16
#elif defined(__AVX2__)
#define RKV_LANES 8
#else
#define RKV_LANES 4
#endif

typedef float rkv_vec __attribute__((vector_size(4 * RKV_LANES)));
typedef int32_t rkv_ivec __attribute__((vector_size(4 * RKV_LANES)));    /* also what a comparison of two rkv_vec gives: -1 or 0 */
typedef uint32_t rkv_uvec __attribute__((vector_size(4 * RKV_LANES)));
typedef uint16_t rkv_hvec __attribute__((vector_size(2 * RKV_LANES)));   /* f16 or bf16 */
typedef int8_t rkv_bvec __attribute__((vector_size(RKV_LANES)));

#define RKV_INLINE static inline __attribute__((always_inline, unused))

/* Before a loop over registers, which must not survive as a loop. */
#if defined(__clang__)
#define RKV_UNROLL _Pragma("clang loop unroll(full)")
#else
#define RKV_UNROLL _Pragma("GCC unroll 16")
#endif

/* ---- loads and stores; addresses need no alignment. The _part forms touch the first n < RKV_LANES elements, the rest reads as 0. ----- */

RKV_INLINE rkv_vec rkv_load(const float *p) { rkv_vec v; memcpy(&v, p, sizeof v); return v; }
RKV_INLINE void rkv_store(float *p, rkv_vec v) { memcpy(p, &v, sizeof v); }
RKV_INLINE rkv_vec rkv_set1(float a) { return a - (rkv_vec){0}; }

RKV_INLINE rkv_vec rkv_load_part(const float *p, int32_t n) {
#if defined(__AVX512F__)
  return (rkv_vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
  rkv_vec v = {0};
  for (int32_t i = 0; i < n; i++) v[i] = p[i];
  return v;
#endif
}
RKV_INLINE void rkv_store_part(float *p, rkv_vec v, int32_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
  for (int32_t i = 0; i < n; i++) p[i] = v[i];
#endif
}

/* ---- arithmetic ------------------------------------------------------------------------------------------------------------------ */

/* a * b + c, in one rounding where the instruction set has it. */
RKV_INLINE rkv_vec rkv_fma(rkv_vec a, rkv_vec b, rkv_vec c) {
#if defined(__AVX512F__)
  return (rkv_vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (rkv_vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (rkv_vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
RKV_INLINE float rkv_fma1(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

/* mask ? a : b, for masks that a comparison made. */
RKV_INLINE rkv_vec rkv_select(rkv_ivec mask, rkv_vec a, rkv_vec b) { return (rkv_vec)((mask & (rkv_ivec)a) | (~mask & (rkv_ivec)b)); }

/* a > b ? a : b, and a < b ? a : b: a NaN in either gives b. */
RKV_INLINE rkv_vec rkv_max(rkv_vec a, rkv_vec b) {
#if defined(__AVX512F__)
  return (rkv_vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (rkv_vec)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__x86_64__)
  return (rkv_vec)_mm_max_ps((__m128)a, (__m128)b);
#else
  return rkv_select(a > b, a, b);
#endif
}
RKV_INLINE rkv_vec rkv_min(rkv_vec a, rkv_vec b) {
#if defined(__AVX512F__)
  return (rkv_vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (rkv_vec)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__x86_64__)
  return (rkv_vec)_mm_min_ps((__m128)a, (__m128)b);
#else
  return rkv_select(a < b, a, b);
#endif
}

/* Sum and maximum over the lanes, always as the same tree: halves onto halves. */
RKV_INLINE float rkv_sum(rkv_vec v) {
  float a[RKV_LANES];
  rkv_store(a, v);
#if RKV_LANES >= 16
  for (int32_t i = 0; i < 8; i++) a[i] += a[i + 8];
#endif
#if RKV_LANES >= 8
  for (int32_t i = 0; i < 4; i++) a[i] += a[i + 4];
#endif
  return (a[0] + a[2]) + (a[1] + a[3]);
}
RKV_INLINE float rkv_max_lane(rkv_vec v) {
  float a[RKV_LANES];
  rkv_store(a, v);
  for (int32_t half = RKV_LANES / 2; half; half /= 2)
    for (int32_t i = 0; i < half; i++) a[i] = a[i] > a[i + half] ? a[i] : a[i + half];
  return a[0];
}

/* e^x, within 1.1 ulp where the result is a normal number; exp(-inf) = 0, exp(inf) = inf, exp(NaN) = NaN.
 * x = n ln 2 + r, |r| <= ln 2 / 2; e^r by its series; 2^n in two factors, so that denormal results come out right. */
RKV_INLINE rkv_vec rkv_exp(rkv_vec x) {
  const rkv_vec magic = rkv_set1(12582912.0f);                       /* 1.5 * 2^23: adding it rounds to an integer */
  x = rkv_max(rkv_set1(-104.0f), rkv_min(rkv_set1(89.0f), x));       /* e^-104 rounds to 0, e^89 to inf; a NaN passes */
  const rkv_vec shifted = rkv_fma(x, rkv_set1(1.44269504088896341f), magic);
  const rkv_vec n = shifted - magic;
  rkv_vec r = rkv_fma(n, rkv_set1(-0.693359375f), x);                /* 9 bits: n times it is exact */
  r = rkv_fma(n, rkv_set1(2.12194440054690583e-4f), r);
  rkv_vec p = rkv_set1(1.0f / 5040);
  p = rkv_fma(p, r, rkv_set1(1.0f / 720));
  p = rkv_fma(p, r, rkv_set1(1.0f / 120));
  p = rkv_fma(p, r, rkv_set1(1.0f / 24));
  p = rkv_fma(p, r, rkv_set1(1.0f / 6));
  p = rkv_fma(p, r, rkv_set1(0.5f));
  p = rkv_fma(p * r, r, r) + rkv_set1(1.0f);
#if defined(__AVX512F__)
  return (rkv_vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const rkv_ivec power = (rkv_ivec)shifted - (rkv_ivec)magic, half = power >> 1;
  return p * (rkv_vec)((half + 127) << 23) * (rkv_vec)((power - half + 127) << 23);
#endif
}
RKV_INLINE float rkv_exp1(float x) { return rkv_exp(rkv_set1(x))[0]; }

#if defined(__AVX512F__)
/* 2^x within 3e-6 of it, far below what probabilities of 16 bits keep: x = n + f, |f| <= 1/2, 2^f by the polynomial of degree 4 that
 * is least off and right at 0. */
RKV_INLINE rkv_vec rkv_exp2(rkv_vec x) {
  const __m512 n = _mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const rkv_vec f = rkv_max(x - (rkv_vec)n, rkv_set1(-0.5f));          /* of -inf: -inf - -inf is NaN, and any number will do */
  rkv_vec p = rkv_fma(rkv_set1(0.00958285304f), f, rkv_set1(0.0559064247f));
  p = rkv_fma(p, f, rkv_set1(0.240240986f));
  p = rkv_fma(p, f, rkv_set1(0.693124193f));
  p = rkv_fma(p, f, rkv_set1(1));
  return (rkv_vec)_mm512_scalef_ps((__m512)p, n);
}
#endif

/* sum of a[i] * b[i], always in the same order: four accumulators over k, then lanes. */
RKV_INLINE float rkv_dot(const float *a /*[n]*/, const float *b /*[n]*/, int32_t n) {
  rkv_vec s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
  int32_t i = 0;
  for (; i + 4 * RKV_LANES <= n; i += 4 * RKV_LANES) {
    s0 = rkv_fma(rkv_load(a + i), rkv_load(b + i), s0);
    s1 = rkv_fma(rkv_load(a + i + RKV_LANES), rkv_load(b + i + RKV_LANES), s1);
    s2 = rkv_fma(rkv_load(a + i + 2 * RKV_LANES), rkv_load(b + i + 2 * RKV_LANES), s2);
    s3 = rkv_fma(rkv_load(a + i + 3 * RKV_LANES), rkv_load(b + i + 3 * RKV_LANES), s3);
  }
  for (; i + RKV_LANES <= n; i += RKV_LANES) s0 = rkv_fma(rkv_load(a + i), rkv_load(b + i), s0);
  if (i < n) s1 = rkv_fma(rkv_load_part(a + i, n - i), rkv_load_part(b + i, n - i), s1);
  return rkv_sum((s0 + s1) + (s2 + s3));
}

/* ---- 16-bit floats and signed bytes ------------------------------------------------------------------------------------------------- */

RKV_INLINE rkv_hvec rkv_load_half(const uint16_t *p) { rkv_hvec v; memcpy(&v, p, sizeof v); return v; }
RKV_INLINE rkv_hvec rkv_load_half_part(const uint16_t *p, int32_t n) {
  rkv_hvec v = {0};
  for (int32_t i = 0; i < n; i++) v[i] = p[i];
  return v;
}
RKV_INLINE void rkv_store_half(uint16_t *p, rkv_hvec v) { memcpy(p, &v, sizeof v); }
RKV_INLINE void rkv_store_half_part(uint16_t *p, rkv_hvec v, int32_t n) { for (int32_t i = 0; i < n; i++) p[i] = v[i]; }
RKV_INLINE rkv_bvec rkv_load_bytes(const int8_t *p) { rkv_bvec v; memcpy(&v, p, sizeof v); return v; }
RKV_INLINE rkv_bvec rkv_load_bytes_part(const int8_t *p, int32_t n) {
  rkv_bvec v = {0};
  for (int32_t i = 0; i < n; i++) v[i] = p[i];
  return v;
}
RKV_INLINE void rkv_store_bytes(int8_t *p, rkv_bvec v) { memcpy(p, &v, sizeof v); }

RKV_INLINE rkv_vec rkv_from_bf16(rkv_hvec h) { return (rkv_vec)(__builtin_convertvector(h, rkv_uvec) << 16); }

/* To the nearest, ties to even; a NaN stays one. */
RKV_INLINE rkv_hvec rkv_to_bf16(rkv_vec v) {
  const rkv_uvec bits = (rkv_uvec)v, is_nan = (rkv_uvec)(v != v);
  const rkv_uvec rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return __builtin_convertvector(((rounded & ~is_nan) | ((bits | 0x400000) & is_nan)) >> 16, rkv_hvec);
}

RKV_INLINE rkv_vec rkv_from_f16(rkv_hvec h) {
#if defined(__AVX512F__)
  return (rkv_vec)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
  return (rkv_vec)_mm256_cvtph_ps((__m128i)h);
#else
  /* exponent and mantissa moved into place are the value times 2^-112; multiplying is exact, also for denormals */
  const rkv_uvec bits = __builtin_convertvector(h, rkv_uvec);
  const rkv_vec value = (rkv_vec)((bits & 0x7fff) << 13) * rkv_set1(0x1p112f);
  const rkv_uvec special = (rkv_uvec)(value >= rkv_set1(65536.0f)) & 0x7f800000;
  return (rkv_vec)((rkv_uvec)value | special | (bits & 0x8000) << 16);
#endif
}

RKV_INLINE rkv_hvec rkv_to_f16(rkv_vec v) {
#if defined(__AVX512F__)
  return (rkv_hvec)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
  return (rkv_hvec)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#else
  const rkv_uvec bits = (rkv_uvec)v, abs = bits & 0x7fffffff;
  const rkv_uvec normal = (abs + (0xfff - (112u << 23)) + ((abs >> 13) & 1)) >> 13;
  const rkv_uvec small = (rkv_uvec)((rkv_vec)abs + rkv_set1(0.5f)) - 0x3f000000;      /* adding 0.5 rounds to multiples of 2^-24 */
  const rkv_uvec is_small = (rkv_uvec)(abs < 0x38800000), is_large = (rkv_uvec)(abs >= 0x47800000), is_nan = (rkv_uvec)(v != v);
  rkv_uvec half = (small & is_small) | (normal & ~is_small);
  half = (half & ~is_large) | (0x7c00 & is_large) | ((0x200 | (abs >> 13 & 0x3ff)) & is_nan);
  return __builtin_convertvector(half | (bits >> 16 & 0x8000), rkv_hvec);
#endif
}

RKV_INLINE rkv_vec rkv_from_bytes(rkv_bvec b) { return __builtin_convertvector(__builtin_convertvector(b, rkv_ivec), rkv_vec); }

/* To the nearest integer, ties to even; the values lie in [-127, 127]. */
RKV_INLINE rkv_bvec rkv_to_bytes(rkv_vec v) {
  const rkv_vec magic = rkv_set1(12582912.0f);
  return __builtin_convertvector((rkv_ivec)(v + magic) - (rkv_ivec)magic, rkv_bvec);
}

/* ---- whole numbers ------------------------------------------------------------------------------------------------------------------- */

/* Products of unsigned and signed bytes, four at a time, exact in 32 bits. A vector of weights holds four neighbouring k of RKV_LANES outputs;
 * the other side is four numbers that all lanes share, as rkv_quad: bytes in order where the instruction set multiplies bytes, else 16-bit
 * numbers in the order 0, 2, 1, 3, since then even and odd bytes of the weights are multiplied in turn.
 *
 * AVX2 adds two products of bytes in 16 bits, and would cut off what eight bits of weight make. `wide`, a constant: weights may be beyond 127.
 * They are then multiplied as what they stand for, byte - 128, by size and sign: 2 * 128 * 127 fits. RKV_SIGNED: so it is here. */
#if defined(__AVX512VNNI__)
#define RKV_SIGNED 0
typedef int8_t rkv_quad;
typedef struct { rkv_ivec bytes; } rkv_quads;
RKV_INLINE rkv_quads rkv_quads_of(rkv_uvec bytes, int32_t wide) { return (void)wide, (rkv_quads){(rkv_ivec)bytes}; }
#elif defined(__AVX2__)
#define RKV_SIGNED 1
typedef int8_t rkv_quad;
typedef struct { rkv_ivec size, sign; } rkv_quads;
RKV_INLINE rkv_quads rkv_quads_of(rkv_uvec bytes, int32_t wide) {
  if (!wide) return (rkv_quads){(rkv_ivec)bytes, {0}};
  const rkv_ivec sign = (rkv_ivec)(bytes ^ 0x80808080);
#if defined(__AVX512BW__)
  return (rkv_quads){(rkv_ivec)_mm512_abs_epi8((__m512i)sign), sign};
#else
  return (rkv_quads){(rkv_ivec)_mm256_abs_epi8((__m256i)sign), sign};
#endif
}
#else
#define RKV_SIGNED 0
typedef int16_t rkv_quad;
typedef struct { rkv_ivec even, odd; } rkv_quads;
RKV_INLINE rkv_quads rkv_quads_of(rkv_uvec bytes, int32_t wide) {
  return (void)wide, (rkv_quads){(rkv_ivec)(bytes & 0x00ff00ff), (rkv_ivec)(bytes >> 8 & 0x00ff00ff)};
}

/* Sums of neighbouring products of 16-bit numbers. */
RKV_INLINE rkv_ivec rkv_pair_products(rkv_ivec a, rkv_ivec b) {
#if defined(__x86_64__)
  return (rkv_ivec)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  const int16x8_t c = vreinterpretq_s16_s32((int32x4_t)a), d = vreinterpretq_s16_s32((int32x4_t)b);
  return (rkv_ivec)vpaddq_s32(vmull_s16(vget_low_s16(c), vget_low_s16(d)), vmull_high_s16(c, d));
#endif
}
#endif

RKV_INLINE rkv_ivec rkv_set1_word(const void *word) {
  int32_t bits;
  memcpy(&bits, word, sizeof bits);
  return bits - (rkv_ivec){0};
}

/* sum + the four products of each lane. */
RKV_INLINE rkv_ivec rkv_add_quads(rkv_ivec sum, rkv_quads weights, const rkv_quad *x /*[4]*/, int32_t wide) {
  (void)wide;
#if defined(__AVX512VNNI__)
  return (rkv_ivec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights.bytes, (__m512i)rkv_set1_word(x));
#elif defined(__AVX512BW__)
  __m512i v = (__m512i)rkv_set1_word(x);
  if (wide) v = _mm512_mask_sub_epi8(v, _mm512_movepi8_mask((__m512i)weights.sign), _mm512_setzero_si512(), v);
  return sum + (rkv_ivec)_mm512_madd_epi16(_mm512_maddubs_epi16((__m512i)weights.size, v), _mm512_set1_epi16(1));
#elif defined(__AVX2__)
  __m256i v = (__m256i)rkv_set1_word(x);
  if (wide) v = _mm256_sign_epi8(v, (__m256i)weights.sign);
  return sum + (rkv_ivec)_mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)weights.size, v), _mm256_set1_epi16(1));
#else
  return sum + rkv_pair_products(weights.even, rkv_set1_word(x)) + rkv_pair_products(weights.odd, rkv_set1_word(x + 2));
#endif
}

/* RKV_LANES whole numbers in [-127, 127] as quads. */
RKV_INLINE void rkv_store_quads(rkv_quad *to /*[RKV_LANES]*/, rkv_ivec v) {
#if defined(__AVX2__)
  const rkv_bvec quads = __builtin_convertvector(v, rkv_bvec);
#else
  v = __builtin_shufflevector(v, v, 0, 2, 1, 3);
  const rkv_hvec quads = __builtin_convertvector((rkv_uvec)v, rkv_hvec);
#endif
  memcpy(to, &quads, sizeof quads);
}

/* The nearest whole numbers, ties to even, for |v| < 2^22. */
RKV_INLINE rkv_ivec rkv_round(rkv_vec v) {
  const rkv_vec magic = rkv_set1(12582912.0f);
  return (rkv_ivec)(v + magic) - (rkv_ivec)magic;
}

RKV_INLINE rkv_ivec rkv_int_max(rkv_ivec a, rkv_ivec b) {
  const rkv_ivec larger = a > b;
  return (a & larger) | (b & ~larger);
}
RKV_INLINE int32_t rkv_int_max_lane(rkv_ivec v) { return __builtin_reduce_max(v); }
RKV_INLINE int32_t rkv_int_sum(rkv_ivec v) { return __builtin_reduce_add(v); }

/* ---- pairs of BF16 ------------------------------------------------------------------------------------------------------------------- */

#if defined(__AVX512BF16__)
#define RKV_PAIRS 1

/* Elements 2 i and 2 i + 1 of (lower, upper) as BF16, side by side in lane i. */
RKV_INLINE rkv_uvec rkv_pairs_of(rkv_vec lower, rkv_vec upper) { return (rkv_uvec)_mm512_cvtne2ps_pbh((__m512)upper, (__m512)lower); }

/* From pairs_of(a, b): a[i] and b[i] side by side in lane i. */
RKV_INLINE rkv_uvec rkv_weave(rkv_uvec pairs) {
  typedef uint16_t halves __attribute__((vector_size(64)));
  const halves h = (halves)pairs;
  return (rkv_uvec)__builtin_shufflevector(h, h, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

/* sum + both products of each lane with a pair that all lanes share. */
RKV_INLINE rkv_vec rkv_add_pairs(rkv_vec sum, rkv_uvec a, const uint32_t *pair) {
  return (rkv_vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)rkv_set1_word(pair));
}

#else
#define RKV_PAIRS 0
#endif

/* ---- between lanes ------------------------------------------------------------------------------------------------------------------ */

/* Lanes of a and b dealt out in groups of h: RKV_LOW_h takes the first half of every group of 2h of a, then of b; RKV_HIGH_h the second. */
#if RKV_LANES == 16
#define RKV_LOW_8(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
#define RKV_HIGH_8(a, b) __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
#define RKV_LOW_4(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27)
#define RKV_HIGH_4(a, b) __builtin_shufflevector(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31)
#define RKV_LOW_2(a, b) __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define RKV_HIGH_2(a, b) __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#define RKV_LOW_1(a, b) __builtin_shufflevector(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30)
#define RKV_HIGH_1(a, b) __builtin_shufflevector(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31)
#elif RKV_LANES == 8
#define RKV_LOW_4(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11)
#define RKV_HIGH_4(a, b) __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15)
#define RKV_LOW_2(a, b) __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define RKV_HIGH_2(a, b) __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#define RKV_LOW_1(a, b) __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14)
#define RKV_HIGH_1(a, b) __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15)
#else
#define RKV_LOW_2(a, b) __builtin_shufflevector(a, b, 0, 1, 4, 5)
#define RKV_HIGH_2(a, b) __builtin_shufflevector(a, b, 2, 3, 6, 7)
#define RKV_LOW_1(a, b) __builtin_shufflevector(a, b, 0, 4, 2, 6)
#define RKV_HIGH_1(a, b) __builtin_shufflevector(a, b, 1, 5, 3, 7)
#endif

#define RKV_EACH_PAIR(h, step)                                     \
  RKV_UNROLL for (int32_t i = 0; i < h; i++) {                     \
    const __typeof__(v[0]) a = v[i], b = v[i + h];                 \
    step(h)                                                        \
  }
/* A blend is cheaper than a shuffle: of (a, b) and (b, a) with every second group of h taken from the second, one is in place already. */
#if RKV_LANES == 16
#define RKV_BLEND_8(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 24, 25, 26, 27, 28, 29, 30, 31)
#define RKV_BLEND_4(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 20, 21, 22, 23, 8, 9, 10, 11, 28, 29, 30, 31)
#define RKV_BLEND_2(a, b) __builtin_shufflevector(a, b, 0, 1, 18, 19, 4, 5, 22, 23, 8, 9, 26, 27, 12, 13, 30, 31)
#define RKV_BLEND_1(a, b) __builtin_shufflevector(a, b, 0, 17, 2, 19, 4, 21, 6, 23, 8, 25, 10, 27, 12, 29, 14, 31)
#define RKV_TURN_8(a) __builtin_shufflevector(a, a, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
#define RKV_TURN_4(a) __builtin_shufflevector(a, a, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
#define RKV_TURN_2(a) __builtin_shufflevector(a, a, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
#define RKV_TURN_1(a) __builtin_shufflevector(a, a, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
#elif RKV_LANES == 8
#define RKV_BLEND_4(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 12, 13, 14, 15)
#define RKV_BLEND_2(a, b) __builtin_shufflevector(a, b, 0, 1, 10, 11, 4, 5, 14, 15)
#define RKV_BLEND_1(a, b) __builtin_shufflevector(a, b, 0, 9, 2, 11, 4, 13, 6, 15)
#define RKV_TURN_4(a) __builtin_shufflevector(a, a, 4, 5, 6, 7, 0, 1, 2, 3)
#define RKV_TURN_2(a) __builtin_shufflevector(a, a, 2, 3, 0, 1, 6, 7, 4, 5)
#define RKV_TURN_1(a) __builtin_shufflevector(a, a, 1, 0, 3, 2, 5, 4, 7, 6)
#endif
#if RKV_LANES >= 8
#define RKV_FOLD(h) v[i] = RKV_BLEND_##h(a, b) + RKV_TURN_##h(RKV_BLEND_##h(b, a));
#else
#define RKV_FOLD(h) v[i] = RKV_LOW_##h(a, b) + RKV_HIGH_##h(a, b);
#endif

/* The lane sums of RKV_LANES vectors: lane i is rkv_sum(v[i]), to the bit. */
RKV_INLINE rkv_vec rkv_sum_rows(rkv_vec v[RKV_LANES]) {
#if RKV_LANES >= 16
  RKV_EACH_PAIR(8, RKV_FOLD)
#endif
#if RKV_LANES >= 8
  RKV_EACH_PAIR(4, RKV_FOLD)
#endif
  RKV_EACH_PAIR(2, RKV_FOLD)
  RKV_EACH_PAIR(1, RKV_FOLD)
  return v[0];
}

/* ---- pairs of 16-bit numbers -------------------------------------------------------------------------------------------------------- */

#if defined(__AVX512VNNI__)
#define RKV_WORDS 1

/* The first n <= 4 * RKV_LANES bytes at p, the rest 0. */
RKV_INLINE rkv_vec rkv_load_bits(const void *p, int32_t n) {
  return (rkv_vec)_mm512_maskz_loadu_epi8(n < 64 ? (1ull << n) - 1 : ~0ull, p);
}

/* Floats that lie apart, at any address. */
RKV_INLINE rkv_vec rkv_load_apart(const char *base, const size_t *offset /*[RKV_LANES]*/) {
  __m512i all = _mm512_setzero_si512();
  RKV_UNROLL for (int32_t i = 0; i < 4; i++) {
    int32_t word[4];
    RKV_UNROLL for (int32_t j = 0; j < 4; j++) memcpy(&word[j], base + offset[4 * i + j], 4);
    const __m128i four = _mm_insert_epi32(_mm_insert_epi32(_mm_insert_epi32(_mm_cvtsi32_si128(word[0]), word[1], 1), word[2], 2), word[3], 3);
    all = i == 0 ? _mm512_castsi128_si512(four) : i == 1 ? _mm512_inserti32x4(all, four, 1) : i == 2 ? _mm512_inserti32x4(all, four, 2) : _mm512_inserti32x4(all, four, 3);
  }
  return (rkv_vec)all;
}

/* 2 * RKV_LANES signed bytes as 16-bit numbers. */
RKV_INLINE rkv_ivec rkv_widen_bytes(const void *p) {
  __m256i bytes;
  memcpy(&bytes, p, sizeof bytes);
  return (rkv_ivec)_mm512_cvtepi8_epi16(bytes);
}

/* a[i] and b[i] side by side: the lower, the upper four of every eight numbers. */
RKV_INLINE rkv_ivec rkv_weave_low(rkv_ivec a, rkv_ivec b) { return (rkv_ivec)_mm512_unpacklo_epi16((__m512i)a, (__m512i)b); }
RKV_INLINE rkv_ivec rkv_weave_high(rkv_ivec a, rkv_ivec b) { return (rkv_ivec)_mm512_unpackhi_epi16((__m512i)a, (__m512i)b); }

/* sum + both products of each lane. */
RKV_INLINE rkv_ivec rkv_add_words(rkv_ivec sum, rkv_ivec a, rkv_ivec b) { return (rkv_ivec)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b); }

/* The first n lanes of v, then those of `rest`. */
RKV_INLINE rkv_vec rkv_first(rkv_vec v, int32_t n, rkv_vec rest) { return (rkv_vec)_mm512_mask_mov_ps((__m512)rest, (__mmask16)((1u << n) - 1), (__m512)v); }
#else
#define RKV_WORDS 0
#endif

#define RKV_SWAP(h)                                                                      \
  RKV_UNROLL for (int32_t i = 0; i < RKV_LANES; i++)                                     \
    if (!(i & h)) {                                                                      \
      const rkv_vec a = v[i], b = v[i + h];                                              \
      v[i] = RKV_LOW_##h(a, b);                                                          \
      v[i + h] = RKV_HIGH_##h(a, b);                                                     \
    }

/* Rows become columns: afterwards lane j of v[i] is what lane i of v[j] was. */
RKV_INLINE void rkv_transpose(rkv_vec v[RKV_LANES]) {
#if RKV_LANES >= 16
  RKV_SWAP(8)
#endif
#if RKV_LANES >= 8
  RKV_SWAP(4)
#endif
  RKV_SWAP(2)
  RKV_SWAP(1)
}

#endif
