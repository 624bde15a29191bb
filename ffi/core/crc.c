/* crc.c: CRC-32C (Castagnoli; RFC 3720, B.4) of blocks of 16 KiB. Blocks are small so that four of them can be summed side by side: the
 * processor's instruction takes three cycles and one can begin in each, so one sum alone would run at a third of its speed. */
#include <string.h>
#include "core.h"
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

/* The remainders of the eight bits of a byte; a byte's is the sum of those of its bits. 0x82f63b78 is the polynomial, reflected. */
#define BITS(n)                                                                                                              \
  (((n)&1 ? 0xf26b8303u : 0) ^ ((n)&2 ? 0xe13b70f7u : 0) ^ ((n)&4 ? 0xc79a971fu : 0) ^ ((n)&8 ? 0x8ad958cfu : 0) ^          \
   ((n)&16 ? 0x105ec76fu : 0) ^ ((n)&32 ? 0x20bd8edeu : 0) ^ ((n)&64 ? 0x417b1dbcu : 0) ^ ((n)&128 ? 0x82f63b78u : 0))
#define FOUR(n) BITS(n), BITS((n) + 1), BITS((n) + 2), BITS((n) + 3)
#define SIXTEEN(n) FOUR(n), FOUR((n) + 4), FOUR((n) + 8), FOUR((n) + 12)
#define SIXTY_FOUR(n) SIXTEEN(n), SIXTEEN((n) + 16), SIXTEEN((n) + 32), SIXTEEN((n) + 48)
static const uint32_t remainders[256] = {SIXTY_FOUR(0), SIXTY_FOUR(64), SIXTY_FOUR(128), SIXTY_FOUR(192)};

static void by_table(uint32_t *sums, const uint8_t *data, size_t bytes) {
  for (size_t begin = 0; begin < bytes; begin += RKV_BLOCK) {
    size_t end = bytes - begin < RKV_BLOCK ? bytes : begin + RKV_BLOCK;
    uint32_t sum = ~0u;
    for (size_t i = begin; i < end; i++) sum = remainders[(sum ^ data[i]) & 255] ^ sum >> 8;
    *sums++ = ~sum;
  }
}

#if defined(__x86_64__)
#define BY_INSTRUCTION __attribute__((target("crc32")))
#define WORD(sum, word) (uint32_t) __builtin_ia32_crc32di(sum, word)
#define BYTE(sum, byte) __builtin_ia32_crc32qi(sum, byte)
static bool has_instruction(void) {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & 1u << 20); /* SSE4.2 */
}
#elif defined(__aarch64__)
#define BY_INSTRUCTION __attribute__((target("crc")))
#define WORD(sum, word) __builtin_arm_crc32cd(sum, word)
#define BYTE(sum, byte) __builtin_arm_crc32cb(sum, byte)
#if defined(__linux__)
static bool has_instruction(void) { return (getauxval(AT_HWCAP) & 1u << 7) != 0; }
#else
static bool has_instruction(void) { return true; } /* every ARM Mac */
#endif
#endif

#if defined(BY_INSTRUCTION)
static inline uint64_t word_at(const uint8_t *data) {
  uint64_t word;
  memcpy(&word, data, sizeof word);
  return word;
}

BY_INSTRUCTION static void by_instruction(uint32_t *sums, const uint8_t *data, size_t bytes) {
  for (; bytes >= 4 * RKV_BLOCK; bytes -= 4 * RKV_BLOCK, data += 4 * RKV_BLOCK, sums += 4) {
    uint32_t a = ~0u, b = ~0u, c = ~0u, d = ~0u;
    for (size_t i = 0; i < RKV_BLOCK; i += 8) {
      a = WORD(a, word_at(data + i));
      b = WORD(b, word_at(data + RKV_BLOCK + i));
      c = WORD(c, word_at(data + 2 * RKV_BLOCK + i));
      d = WORD(d, word_at(data + 3 * RKV_BLOCK + i));
    }
    sums[0] = ~a, sums[1] = ~b, sums[2] = ~c, sums[3] = ~d;
  }
  for (size_t begin = 0; begin < bytes; begin += RKV_BLOCK) {
    size_t end = bytes - begin < RKV_BLOCK ? bytes : begin + RKV_BLOCK, i = begin;
    uint32_t sum = ~0u;
    for (; i + 8 <= end; i += 8) sum = WORD(sum, word_at(data + i));
    for (; i < end; i++) sum = BYTE(sum, data[i]);
    *sums++ = ~sum;
  }
}
#endif

void rkv_crc(uint32_t *sums, const uint8_t *data, size_t bytes) {
#if defined(BY_INSTRUCTION)
  if (has_instruction()) {
    by_instruction(sums, data, bytes);
    return;
  }
#endif
  by_table(sums, data, bytes);
}

int32_t rkv_checksums(uint32_t *sums, const uint8_t *data, uint32_t bytes) {
  rkv_crc(sums, data, bytes);
  return (int32_t)((bytes + (uint64_t)RKV_BLOCK - 1) / RKV_BLOCK);
}
