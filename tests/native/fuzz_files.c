/* fuzz_files.c: offsets, sizes, types and handles as a hostile header may give them, over files of any length. */
#include "fuzz.h"
#include <unistd.h>

const char *fuzz_file(size_t size) {
  static char path[512];
  if (path[0] == 0) {
    const char *folder = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/recallkv-fuzz-%d", folder ? folder : "/tmp", (int)getpid());
  }
  FILE *file = fopen(path, "wb");
  if (file == NULL) abort();
  for (size_t i = 0; i < size; i++) fputc(below(256), file);
  fclose(file);
  return path;
}

static int64_t offset_of(int64_t size) {
  static const int64_t edges[] = {0, 1, -1, INT64_MAX, INT64_MIN, (int64_t)1 << 32, (int64_t)1 << 62, -32};
  switch (below(4)) {
    case 0: return edges[below(sizeof edges / sizeof *edges)];
    case 1: return size - below(64);
    case 2: return size + below(3) - 1;
    default: return below((int32_t)size + 1);
  }
}

static int32_t extent(void) { return below(3) ? 32 * (1 + below(20)) : below(2) ? 1 + below(300) : edge(); }

/* Whether what was refused says so in a sentence. */
static void judge(const char *what, int32_t code) {
  char why[512] = "";
  if (code >= 0) return;
  CHECK(rkv_why((uint8_t *)why, sizeof why - 1) > 20 && strncmp(why, "Cannot ", 7) == 0 && code >= RKV_LIMIT, "%s ended with %d: %s", what, code, why);
}

static void file_of_size(const rkv_cpu *cpu, int32_t size, int32_t calls, int32_t *taken) {
  const char *path = fuzz_file((size_t)size);
  const int32_t device = rkv_open(RKV_CPU, 2, isa_of(cpu)), file = rkv_file((const uint8_t *)path, (uint32_t)strlen(path));
  CHECK(size > 0 ? file > 0 : file == RKV_FILE, "a file of %d bytes was %d", size, file);
  const int32_t arena = rkv_arena(device, (int64_t)1 << 24), sums = rkv_tensor(arena, RKV_U32, (const int32_t[]){64}, 1), rows = rkv_tensor(arena, RKV_F32, (const int32_t[]){100, 70}, 2);
  const int32_t others[] = {0, -1, device, arena, sums, rows, file, file + 1, INT32_MAX, edge()};
  int32_t closed = 0;
  for (int32_t i = 0; i < calls; i++) {
    const int32_t wrong = below(12), other = others[below(sizeof others / sizeof *others)];
    const int32_t type = below(8) ? below(8) : edge(), height = below(4) ? extent() : 1, width = extent();
    const int32_t a = wrong == 0 ? other : arena, f = wrong == 1 ? other : file;
    int32_t code = rkv_weight(a, f, offset_of(size), type, height, width, below(3) ? 0 : below(2) ? 1 + below(4) : edge());
    *taken += code > 0;
    judge("a weight", code);
    if (below(2)) {
      code = rkv_load_rows(wrong == 2 ? other : sums, below(3) ? 0 : edge(), wrong == 3 ? other : rows, below(2) ? 0 : edge(), below(2) ? below(7001) : edge(), f, offset_of(size));
      judge("a load", code);
    }
    if (below(calls) == 0) closed = 1, judge("closing a file", rkv_close(file)); /* what is under way still reads it; what comes then is refused */
    if (i % 100 == 99) {
      const int32_t end = await_job(device, rkv_fence(arena));
      CHECK(end == 0, "packing ended with %d", end);
    }
  }
  if (!closed && file > 0) rkv_close(file);
  rkv_close(arena), rkv_close(device);
}

void fuzz_files(const rkv_cpu *cpu, int32_t count) {
  static const int32_t sizes[] = {0, 1, 17, 33, 34, 143, 144, 210, 4095, 4096, 4097, 65536, 1 << 20, 100001};
  static const char *const paths[] = {"", "/", "/nowhere/at/all", "/dev/null", "."};
  int32_t taken = 0, files = 0;
  for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
    const int32_t code = rkv_file((const uint8_t *)paths[i], (uint32_t)strlen(paths[i]));
    CHECK(code == RKV_FILE, "the file \"%s\" was %d", paths[i], code);
    judge("a path", code);
  }
  judge("a long path", rkv_file((const uint8_t *)"x", 1 << 20));
  for (int32_t left = count; left > 0; left -= 500, files++) file_of_size(cpu, sizes[below(sizeof sizes / sizeof *sizes)], left < 500 ? left : 500, &taken);
  unlink(fuzz_file(0));
  printf("%-11s %d weights of %d files: %d taken and packed\n", cpu->name, count, files, taken);
}
