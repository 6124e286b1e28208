/* What the machine can do: multiply-adds on registers, and nothing else.
 *
 * Each loop runs on every thread at once and is timed by the processor time of each thread, so
 * that other work does not count. */
#include "vec.h"
#include <pthread.h>
#include <time.h>

/* Independent sums: more than latency times ports, fewer than the registers. */
enum { CHAINS = 12, MOST_THREADS = 64 };

typedef struct {
  int64_t steps;
  int64_t kept;   /* so that no loop is removed */
  double seconds; /* of processor time */
  void (*work)(void *task);
} Task;

static double now(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *run_task(void *argument) {
  Task *task = argument;
  const double start = now(CLOCK_THREAD_CPUTIME_ID);
  task->work(task);
  task->seconds = now(CLOCK_THREAD_CPUTIME_ID) - start;
  return 0;
}

#if defined(__AVX512VNNI__)
typedef __m512i vb;
#define SET8 _mm512_set1_epi8
#define DOT8(acc, a, b) acc = _mm512_dpbusd_epi32(acc, a, b)
#define DOT16(acc, a, b) acc = _mm512_dpwssd_epi32(acc, a, b)
#elif defined(__AVX2__)
typedef __m256i vb;
#define SET8 _mm256_set1_epi8
/* Pairs to 16 bits, pairs of those to 32: three instructions, as there is no dot product. */
#define DOT8(acc, a, b) \
  acc = _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones))
#define DOT16(acc, a, b) acc = _mm256_add_epi32(acc, _mm256_madd_epi16(a, b))
#else
typedef int8_t vb __attribute__((vector_size(16)));
#define SET8(x) ((x) - (vb){0})
#define DOT8(acc, a, b) acc += (a) * (b)
#define DOT16(acc, a, b) acc = (vb)((vs)acc + (vs)(a) * (vs)(b))
typedef int16_t vs __attribute__((vector_size(16)));
#endif

static void spin_f32(void *argument) {
  Task *task = argument;
  vf acc[CHAINS];
  const vf a = vf_set(0.999f), b = vf_set(0.001f);
  for (int c = 0; c < CHAINS; c++) acc[c] = vf_set((float)c);
  for (int64_t i = 0; i < task->steps; i++) UNROLL for (int c = 0; c < CHAINS; c++)
      acc[c] = vf_fma(acc[c], a, b);
  float sum = 0.0f;
  for (int c = 0; c < CHAINS; c++) sum += vf_sum(acc[c]);
  task->kept = (int64_t)sum;
}

/* An operand passes through an empty asm each time, so that no product is taken out of the loop. */
#define SPIN(name, DOT) \
  static void name(void *argument) { \
    Task *task = argument; \
    vb acc[CHAINS], a = SET8(1), b = SET8(1), ones = SET8(1); \
    UNROLL for (int c = 0; c < CHAINS; c++) acc[c] = SET8(0); \
    for (int64_t i = 0; i < task->steps; i++) { \
      UNROLL for (int c = 0; c < CHAINS; c++) { \
        DOT(acc[c], a, b); \
        __asm__("" : OPAQUE(acc[c]), OPAQUE(a)); \
      } \
    } \
    (void)ones; \
    UNROLL for (int c = 1; c < CHAINS; c++) acc[0] ^= acc[c]; \
    memcpy(&task->kept, &acc[0], sizeof task->kept); \
  }
#if defined(__x86_64__)
#define OPAQUE(x) "+v"(x)
#elif defined(__aarch64__)
#define OPAQUE(x) "+w"(x)
#else
#define OPAQUE(x) "+m"(x)
#endif
SPIN(spin_i8, DOT8)
SPIN(spin_i16, DOT16)

/* Runs the loop on threads at once. */
static void run_on(int n_threads, Task *tasks, const Task *whole) {
  pthread_t threads[MOST_THREADS];
  for (int t = 0; t < n_threads; t++) tasks[t] = *whole;
  for (int t = 1; t < n_threads; t++) pthread_create(&threads[t], 0, run_task, &tasks[t]);
  run_task(&tasks[0]);
  for (int t = 1; t < n_threads; t++) pthread_join(threads[t], 0);
}

#define EXPORT __attribute__((visibility("default")))
#define PEAK(name, loop, per_step) \
  EXPORT double name(int64_t steps, int n_threads); \
  double name(int64_t steps, int n_threads) { \
    const Task whole = {.steps = steps, .work = loop}; \
    Task tasks[MOST_THREADS]; \
    double rate = 0.0; \
    run_on(n_threads, tasks, &whole); \
    for (int t = 0; t < n_threads; t++) { \
      rate += (per_step) * CHAINS * (double)steps / tasks[t].seconds / 1e9; \
    } \
    return rate; \
  }
PEAK(peak_f32, spin_f32, 2.0 * VL)
PEAK(peak_i8, spin_i8, 2.0 * sizeof(vb))
PEAK(peak_i16, spin_i16, 1.0 * sizeof(vb))
