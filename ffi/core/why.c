/* why.c: the sentence that says why a call was refused. It is fetched right after the refusal, on the same thread. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "core.h"

static _Thread_local char sentence[512];

int32_t rkv_refuse(int32_t code, const char *format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(sentence, sizeof sentence, format, values);
  va_end(values);
  return code;
}

int32_t rkv_why(uint8_t *text, uint32_t bytes) {
  size_t length = strlen(sentence);
  if (length > bytes) length = bytes;
  if (text != NULL) memcpy(text, sentence, length);
  return (int32_t)length;
}

int32_t rkv_abi(void) { return RKV_ABI; }
