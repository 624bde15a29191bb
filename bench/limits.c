/* limits.c: what this machine can do at most, as one line of JSON: bytes read per second, and f32, BF16 and byte products per second, by one
 * thread and by all. Each is the median of seven short runs. Usage: limits [threads [read]]; `read`: bytes by all threads, and no more. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define RUNS 7
#define BYTES ((size_t)768 << 20)       /* far beyond every cache */
#define MAX_THREADS 64

typedef struct { double (*work)(int, int); int place, threads; pthread_barrier_t *start; double done, begin, end; } job;

static char *memory;
static volatile uint64_t sink;

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Works return how much they did: bytes, or products and sums. */
static double read_all(int place, int threads) {
  typedef uint64_t vec __attribute__((vector_size(64)));
  const size_t share = BYTES / (size_t)threads / 4096 * 4096;
  const vec *at = (const vec *)(memory + share * (size_t)place), *end = at + share / sizeof(vec);
  vec sum[4] = {{0}};
  for (; at < end; at += 4)
    for (int i = 0; i < 4; i++) sum[i] += at[i];
  for (int i = 1; i < 4; i++) sum[0] += sum[i];
  sink += sum[0][0];
  return (double)share;
}

#define CHAINS 12
#define ROUNDS 8000000
#define IN_REGISTERS _Pragma("clang loop unroll(full)")   /* a chain that went through memory would measure that */
#define ARITHMETIC(name, type, first, step, flops)                                                      \
  static double name(int place, int threads) {                                                          \
    (void)place, (void)threads;                                                                         \
    type sum[CHAINS];                                                                                   \
    IN_REGISTERS for (int i = 0; i < CHAINS; i++) sum[i] = first;                                       \
    for (int r = 0; r < ROUNDS; r++)                                                                    \
      IN_REGISTERS for (int i = 0; i < CHAINS; i++) {                                                   \
        sum[i] = step;                                                                                  \
        __asm__ volatile("" : "+v"(sum[i]));                                                            \
      }                                                                                                 \
    IN_REGISTERS for (int i = 0; i < CHAINS; i++) {                                                     \
      uint64_t word;                                                                                    \
      memcpy(&word, &sum[i], sizeof word);                                                              \
      sink += word;                                                                                     \
    }                                                                                                   \
    return (double)(flops) * CHAINS * ROUNDS;                                                           \
  }
#if defined(__AVX512F__)
ARITHMETIC(f32, __m512, _mm512_set1_ps(1), _mm512_fmadd_ps(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.25f), sum[i]), 32)
#elif defined(__AVX2__)
ARITHMETIC(f32, __m256, _mm256_set1_ps(1), _mm256_fmadd_ps(_mm256_set1_ps(0.5f), _mm256_set1_ps(0.25f), sum[i]), 16)
#endif
#if defined(__AVX512BF16__)
ARITHMETIC(bf16, __m512, _mm512_set1_ps(1), _mm512_dpbf16_ps(sum[i], (__m512bh)_mm512_set1_epi32(0x3f003f00), (__m512bh)_mm512_set1_epi32(0x3e803e80)), 64)
#endif
#if defined(__AVX512VNNI__)
ARITHMETIC(bytes, __m512i, _mm512_set1_epi32(1), _mm512_dpbusd_epi32(sum[i], _mm512_set1_epi32(0x01020304), _mm512_set1_epi32(0x04030201)), 128)
#endif

static void *run(void *given) {
  job *j = given;
#if defined(__linux__)
  cpu_set_t cores;                       /* a run is over before the system would spread the threads */
  CPU_ZERO(&cores);
  CPU_SET(j->place, &cores);
  pthread_setaffinity_np(pthread_self(), sizeof cores, &cores);
#endif
  pthread_barrier_wait(j->start);
  j->begin = seconds();
  j->done = j->work(j->place, j->threads);
  j->end = seconds();
  return NULL;
}

static int ascending(const void *a, const void *b) { return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b); }

/* Work per second, in units of 10^9. */
static double rate(double (*work)(int, int), int threads) {
  double rates[RUNS];
  for (int r = 0; r < RUNS; r++) {
    pthread_barrier_t start;
    pthread_t thread[MAX_THREADS];
    job jobs[MAX_THREADS];
    pthread_barrier_init(&start, NULL, (unsigned)threads);
    for (int i = 0; i < threads; i++) {
      jobs[i] = (job){.work = work, .place = i, .threads = threads, .start = &start};
      pthread_create(&thread[i], NULL, run, &jobs[i]);
    }
    double done = 0, begin = 0, end = 0;
    for (int i = 0; i < threads; i++) {
      pthread_join(thread[i], NULL);
      done += jobs[i].done;
      begin = i == 0 || jobs[i].begin < begin ? jobs[i].begin : begin;
      end = jobs[i].end > end ? jobs[i].end : end;
    }
    rates[r] = done / (end - begin) * 1e-9;
  }
  qsort(rates, RUNS, sizeof *rates, ascending);
  return rates[RUNS / 2];
}

int main(int count, char **arguments) {
  int threads = count > 1 ? atoi(arguments[1]) : 2;
  if (threads < 1 || threads > MAX_THREADS) threads = 1;
  memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 1;
#if defined(MADV_HUGEPAGE)
  madvise(memory, BYTES, MADV_HUGEPAGE);
#endif
  memset(memory, 1, BYTES);
  if (count > 2) {
    printf("{\"read\": %.2f}\n", rate(read_all, threads));
    return 0;
  }
  printf("{\"threads\": %d, \"read1\": %.2f, \"read\": %.2f", threads, rate(read_all, 1), rate(read_all, threads));
#if defined(__AVX2__)
  printf(", \"f32\": %.1f", rate(f32, threads));
#endif
#if defined(__AVX512BF16__)
  printf(", \"bf16\": %.1f", rate(bf16, threads));
#endif
#if defined(__AVX512VNNI__)
  printf(", \"bytes\": %.1f", rate(bytes, threads));
#endif
  printf("}\n");
  return 0;
}
