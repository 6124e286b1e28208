/* The thread pool: one set of threads for the life of the process, which spins and then parks.
 *
 * An entry point is a list of stages with a barrier between them. Each thread is dealt one run of
 * the rows of a stage and one run of its other tasks, so that it meets the same rows from stage to
 * stage and shares few cache lines with others; who is done early takes from the others. Which
 * thread does a task changes no result: every task writes what no other task of its stage
 * touches. */

typedef struct {
  char *const *arena;
  const int64_t *count; /* of the program's symbols, in this call */
} Call;

typedef struct {
  void (*run)(const Call *c, int64_t task);
  int64_t (*chain)(const Call *c); /* the tasks that are rows; they come first */
  int64_t (*tasks)(const Call *c); /* all of them */
} Stage;

enum {
  MAX_THREADS = 256,
  MANY_SPINS = 1024, /* about as long as it takes to wake a thread that is parked */
  FEW_SPINS = 128,
  LONG_NS = 200000, /* longer than any wake-up takes */
  STACK_BYTES = 16 << 20
};

/* How long this thread spins before it parks. A long wait is one for a thread that lost its core to
 * another program: then spinning takes a core from those who have work. A short one that was parked
 * for says that it should have spun. */
static _Thread_local int patience = MANY_SPINS;

typedef struct {
  _Alignas(64) _Atomic int64_t next; /* alone on its cache line */
} Cursor;

static struct {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  atomic_int n_asleep;
  int n_wanted, n_running; /* threads, the caller among them */
  int stopping, handles_fork;
  pthread_t threads[MAX_THREADS];
  uint32_t seen[MAX_THREADS]; /* the last job that a new thread must not run */

  atomic_uint job;   /* changes when there is a job, or when threads shall end */
  atomic_uint phase; /* changes when a stage is done */
  atomic_uint n_arrived;
  const Call *call;
  const Stage *stages;
  int n_stages;
  int64_t n_chain, n_tasks; /* of the stage that runs */
  Cursor cursors[MAX_THREADS];
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER,
          .changed = PTHREAD_COND_INITIALIZER,
          .n_wanted = 1,
          .n_running = 1};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static int64_t clock_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Sleeps until the word is no longer `old`. */
static void park_while(atomic_uint *word, uint32_t old) {
  pthread_mutex_lock(&pool.lock);
  atomic_fetch_add(&pool.n_asleep,
                   1); /* before the word is read again, or a wake-up could be missed */
  while (atomic_load(word) == old) pthread_cond_wait(&pool.changed, &pool.lock);
  atomic_fetch_sub(&pool.n_asleep, 1);
  pthread_mutex_unlock(&pool.lock);
}

/* Waits until the word is no longer `old`. */
static void wait_while(atomic_uint *word, uint32_t old) {
  for (int i = 0; i < patience; i++) {
    if (atomic_load_explicit(word, memory_order_acquire) != old) {
      if (patience < MANY_SPINS) patience += patience / 8;
      return;
    }
    relax();
  }
  const int64_t start = clock_ns();
  park_while(word, old);
  if (clock_ns() - start < LONG_NS)
    patience = patience < MANY_SPINS / 2 ? 2 * patience : MANY_SPINS;
  else if (patience > FEW_SPINS)
    patience /= 2;
}

/* Changes the word and wakes those that gave up spinning for it. */
static void advance(atomic_uint *word) {
  atomic_fetch_add(word, 1);
  if (atomic_load(&pool.n_asleep) == 0) return;
  pthread_mutex_lock(&pool.lock);
  pthread_cond_broadcast(&pool.changed);
  pthread_mutex_unlock(&pool.lock);
}

static void open_stage(int stage) {
  pool.n_chain = pool.stages[stage].chain(pool.call);
  pool.n_tasks = pool.stages[stage].tasks(pool.call);
  for (int t = 0; t < pool.n_running; t++)
    atomic_store_explicit(&pool.cursors[t].next, 0, memory_order_relaxed);
}

static void run_tasks(int thread, const Stage *stage) {
  const int64_t n = pool.n_running, n_chain = pool.n_chain, n_rest = pool.n_tasks - pool.n_chain;
  for (int64_t k = 0; k < n; k++) { /* its own share first, then what the others have left */
    const int64_t owner = (thread + k) % n;
    const int64_t row = n_chain * owner / n, rows = n_chain * (owner + 1) / n - row;
    const int64_t rest = n_rest * owner / n, all = rows + n_rest * (owner + 1) / n - rest;
    for (;;) {
      const int64_t turn =
          atomic_fetch_add_explicit(&pool.cursors[owner].next, 1, memory_order_relaxed);
      if (turn >= all) break;
      stage->run(pool.call, turn < rows ? row + turn : n_chain + rest + turn - rows);
    }
  }
}

static void run_stages(int thread) {
  const uint32_t n_running = (uint32_t)pool.n_running;
  const int n_stages = pool.n_stages;
  for (int stage = 0; stage < n_stages; stage++) {
    const uint32_t phase = atomic_load(&pool.phase);
    const int is_last_stage = stage + 1 == n_stages;
    run_tasks(thread, &pool.stages[stage]);
    if (atomic_fetch_add(&pool.n_arrived, 1) + 1 == n_running) {
      atomic_store(&pool.n_arrived, 0);
      if (!is_last_stage) open_stage(stage + 1);
      advance(&pool.phase);
    } else if (!is_last_stage || thread == 0) {
      wait_while(&pool.phase, phase);
    }
  }
}

static void *serve(void *argument) {
  const int thread = (int)(intptr_t)argument;
  uint32_t job = pool.seen[thread];
  for (;;) {
    wait_while(&pool.job, job);
    job++;
    if (pool.stopping) return NULL;
    run_stages(thread);
  }
}

/* In a forked child only the forking thread lives on: the next call starts new ones. */
static void forget_threads(void) {
  pthread_mutex_init(&pool.lock, NULL);
  pthread_cond_init(&pool.changed, NULL);
  atomic_store(&pool.n_asleep, 0);
  pool.n_running = 1;
}

static void stop_threads(void) {
  pool.stopping = 1;
  advance(&pool.job);
  for (int t = 1; t < pool.n_running; t++) pthread_join(pool.threads[t], NULL);
  pool.stopping = 0;
  pool.n_running = 1;
}

static void start_threads(void) {
  pthread_attr_t attributes;
  if (!pool.handles_fork) pool.handles_fork = pthread_atfork(NULL, NULL, forget_threads) == 0;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  int n_started = 1;
  for (; n_started < pool.n_wanted; n_started++) {
    pool.seen[n_started] = atomic_load(&pool.job);
    void *argument = (void *)(intptr_t)n_started;
    if (pthread_create(&pool.threads[n_started], &attributes, serve, argument) != 0) break;
  }
  pthread_attr_destroy(&attributes);
  pool.n_running =
      n_started; /* fewer than wanted where the system gives no more: slower, same bits */
  pool.n_wanted = n_started;
}

static void run_alone(const Call *call, const Stage *stages, int n_stages) {
  for (int stage = 0; stage < n_stages; stage++) {
    const int64_t n_tasks = stages[stage].tasks(call);
    for (int64_t task = 0; task < n_tasks; task++) stages[stage].run(call, task);
  }
}

static void run_shared(const Call *call, const Stage *stages, int n_stages) {
  if (n_stages == 0) return;
  if (pool.n_running != pool.n_wanted) start_threads();
  pool.call = call;
  pool.stages = stages;
  pool.n_stages = n_stages;
  open_stage(0);
  advance(&pool.job);
  run_stages(0);
}
