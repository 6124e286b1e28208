/* Reads memory once with several threads, each its own share, as fast as loads go. */
#include <pthread.h>
#include <stdint.h>
#include <time.h>

enum { MAX_THREADS = 256 };
typedef int64_t word __attribute__((vector_size(64)));
typedef struct {
  const word *begin, *end;
  word sum;
} Share;

static void *read_share(void *argument) {
  Share *share = argument;
  word sum[4] = {{0}, {0}, {0}, {0}};
  for (const word *at = share->begin; at < share->end; at += 4)
    for (int i = 0; i < 4; i++) {
      __builtin_prefetch((const char *)(at + i) + 4096);
      sum[i] ^= at[i];
    }
  share->sum = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
  return 0;
}

double read_seconds(const void *memory, int64_t n_bytes, int32_t n_threads);
double read_seconds(const void *memory, int64_t n_bytes, int32_t n_threads) {
  static Share shares[MAX_THREADS];
  pthread_t threads[MAX_THREADS];
  struct timespec start, end;
  const int64_t lines = n_bytes / (int64_t)sizeof(word) / 4;
  if (n_threads > MAX_THREADS) n_threads = MAX_THREADS;
  clock_gettime(CLOCK_MONOTONIC, &start);
  for (int t = 0; t < n_threads; t++) {
    shares[t].begin = (const word *)memory + lines * t / n_threads * 4;
    shares[t].end = (const word *)memory + lines * (t + 1) / n_threads * 4;
    pthread_create(&threads[t], 0, read_share, &shares[t]);
  }
  for (int t = 0; t < n_threads; t++) pthread_join(threads[t], 0);
  clock_gettime(CLOCK_MONOTONIC, &end);
  return (double)(end.tv_sec - start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec);
}
