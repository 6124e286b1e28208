/* Reads memory once with several threads, each its own share, as fast as loads go. */
#include <pthread.h>
#include <stdint.h>
#include <time.h>

enum { MAX_THREADS = 256 };
typedef struct {
  const uint64_t *begin, *end;
  uint64_t sum;
} Share;

static void *read_share(void *argument) {
  Share *share = argument;
  uint64_t sum = 0;
  for (const uint64_t *at = share->begin; at < share->end; at++) sum ^= *at;
  share->sum = sum;
  return 0;
}

double read_seconds(const void *memory, int64_t n_bytes, int32_t n_threads);
double read_seconds(const void *memory, int64_t n_bytes, int32_t n_threads) {
  static Share shares[MAX_THREADS];
  pthread_t threads[MAX_THREADS];
  struct timespec start, end;
  const int64_t n_words = n_bytes / (int64_t)sizeof(uint64_t);
  if (n_threads > MAX_THREADS) n_threads = MAX_THREADS;
  clock_gettime(CLOCK_MONOTONIC, &start);
  for (int t = 0; t < n_threads; t++) {
    shares[t].begin = (const uint64_t *)memory + n_words * t / n_threads;
    shares[t].end = (const uint64_t *)memory + n_words * (t + 1) / n_threads;
    pthread_create(&threads[t], 0, read_share, &shares[t]);
  }
  for (int t = 0; t < n_threads; t++) pthread_join(threads[t], 0);
  clock_gettime(CLOCK_MONOTONIC, &end);
  return (double)(end.tv_sec - start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec);
}
