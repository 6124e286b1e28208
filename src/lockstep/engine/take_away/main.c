/* Goes on from a prompt: reads the weights, runs the program of model.c, prints what it chooses. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model.h"
#include "tokenizer.h"

static const char USAGE[] =
    "usage: lm -p PROMPT [options]\n"
    "  -p, --prompt TEXT     the text to go on from; without it, standard input\n"
    "  -n, --max-tokens N    most tokens to generate (512)\n"
    "  --ctx N               room for prompt and text, at most that of the program\n"
    "  --threads N           threads (all cores)\n"
    "  --temperature X       0 takes the likeliest token (0)\n"
    "  --top-k K             keep the k likeliest tokens; 0 keeps all (0)\n"
    "  --seed N              of the draws (0)\n"
    "  --special             names of control tokens in the prompt are these tokens\n"
    "  --ignore-eos          go on behind the end token\n"
    "  --ids                 print ids instead of text\n"
    "  --tokenize            print the ids of the texts, between which there are zeros, and end\n";

typedef struct {
  const char *prompt;
  long max_tokens, context, threads, top_k;
  double temperature;
  uint64_t seed;
  int special, ignore_eos, ids, tokenize;
} Options;

static void fail(int code, const char *what, const char *why) {
  fprintf(stderr, "lm: %s: %s\n", what, why);
  exit(code);
}

static long number(const char *flag, const char *text, long least, long most) {
  char *end;
  errno = 0;
  const long value = strtol(text, &end, 10);
  if (errno || end == text || *end || value < least || value > most) {
    char why[80];
    snprintf(why, sizeof why, "expected %ld to %ld", least, most);
    fail(2, flag, why);
  }
  return value;
}

static double real(const char *flag, const char *text) {
  char *end;
  const double value = strtod(text, &end);
  if (end == text || *end || !(value >= 0 && value <= 100)) fail(2, flag, "expected 0 to 100");
  return value;
}

static Options parse(int argc, char **argv) {
  Options o = {.max_tokens = 512, .context = MODEL_CONTEXT};
  const long cores = sysconf(_SC_NPROCESSORS_ONLN);
  o.threads = cores < 1 ? 1 : cores > 256 ? 256 : cores;
  for (int i = 1; i < argc; i++) {
    const char *flag = argv[i];
    int *const set = !strcmp(flag, "--special")      ? &o.special
                     : !strcmp(flag, "--ignore-eos") ? &o.ignore_eos
                     : !strcmp(flag, "--ids")        ? &o.ids
                     : !strcmp(flag, "--tokenize")   ? &o.tokenize
                                                     : NULL;
    if (set) {
      *set = 1;
      continue;
    }
    if (!strcmp(flag, "--help")) {
      fputs(USAGE, stdout);
      exit(0);
    }
    const char *value = i + 1 < argc ? argv[++i] : NULL;
    if (value == NULL) {
      fputs(USAGE, stderr);
      fail(2, flag, "it is not known, or its value is missing");
    } else if (!strcmp(flag, "-p") || !strcmp(flag, "--prompt")) {
      o.prompt = value;
    } else if (!strcmp(flag, "-n") || !strcmp(flag, "--max-tokens")) {
      o.max_tokens = number(flag, value, 1, 1L << 30);
    } else if (!strcmp(flag, "--ctx")) {
      o.context = number(flag, value, 1, MODEL_CONTEXT);
    } else if (!strcmp(flag, "--threads")) {
      o.threads = number(flag, value, 1, 256);
    } else if (!strcmp(flag, "--top-k")) {
      o.top_k = number(flag, value, 0, 1L << 30);
    } else if (!strcmp(flag, "--temperature")) {
      o.temperature = real(flag, value);
    } else if (!strcmp(flag, "--seed")) {
      o.seed = (uint64_t)number(flag, value, 0, 0x7FFFFFFFFFFFFFFF);
    } else {
      fputs(USAGE, stderr);
      fail(2, flag, "it is not known");
    }
  }
  return o;
}

/* A file that lies beside this program, which a shell may have found by its name alone. */
static const char *beside(const char *program, const char *name) {
  char itself[4096];
  const ssize_t length = readlink("/proc/self/exe", itself, sizeof itself);
  if (length > 0 && (size_t)length < sizeof itself) {
    itself[length] = '\0';
    program = itself;
  }
  const char *slash = strrchr(program, '/');
  const int n = slash ? (int)(slash - program + 1) : 0;
  char *path = malloc((size_t)n + strlen(name) + 1);
  if (path == NULL) fail(3, name, "not enough memory");
  sprintf(path, "%.*s%s", n, program, name);
  return path;
}

static char *read_all(FILE *file, size_t *n) {
  size_t room = 1 << 12;
  char *text = malloc(room);
  *n = 0;
  while (text && (*n += fread(text + *n, 1, room - *n, file)) == room)
    text = realloc(text, room *= 2);
  if (text == NULL) fail(3, "standard input", "not enough memory");
  return text;
}

/* The model. */

static void *arenas[MODEL_N_ARENAS];

static void *zeros(size_t n) {
  void *memory = mmap(NULL, n ? n : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail(5, "memory", strerror(errno));
  return memory;
}

/* The words of each part must add up to what they did when they were written. */
static void check_sums(const char *path, const uint64_t *words, size_t n) {
  for (size_t at = 0, i = 0; at < n; at += MODEL_SUM_BYTES, i++) {
    const size_t end = n - at < MODEL_SUM_BYTES ? n : at + MODEL_SUM_BYTES;
    uint64_t sum = 0;
    for (size_t k = at / sizeof *words; k < end / sizeof *words; k++) sum += words[k];
    if (sum != MODEL_SUMS[i]) {
      char why[120];
      snprintf(why, sizeof why, "bytes %zu to %zu are not those of the model; export it again", at,
               end);
      fail(4, path, why);
    }
  }
}

static void *map_weights(const char *path, size_t n) {
  struct stat status;
  const int file = open(path, O_RDONLY);
  if (file < 0 || fstat(file, &status) != 0) fail(4, path, strerror(errno));
  if ((size_t)status.st_size != n) fail(4, path, "it has not the size that the program expects");
  void *memory = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
  if (memory == MAP_FAILED) fail(5, path, strerror(errno));
  close(file);
  check_sums(path, memory, n);
  return memory;
}

static void open_model(const char *program, int threads) {
  for (int i = 0; i < MODEL_N_ARENAS; i++)
    arenas[i] = i == MODEL_PARAMS ? map_weights(beside(program, "weights.bin"), MODEL_BYTES[i])
                                  : zeros(MODEL_BYTES[i]);
  lockstep_set_threads(threads);
  lockstep_call(MODEL_INIT, arenas, MODEL_MOST);
}

#define PLACE(type, value) ((type *)(void *)((char *)arenas[value##_ARENA] + value##_OFFSET))

/* Reads tokens at some position, and returns the logits after the last. */
static const float *read_tokens(const int32_t *ids, size_t n, size_t position) {
  int64_t counts[MODEL_N_COUNTS];
  for (size_t done = 0; done < n;) {
    const size_t rows = n - done < MODEL_ROWS ? n - done : MODEL_ROWS;
    for (size_t i = 0; i < rows; i++) {
      PLACE(int32_t, MODEL_TOKENS)[i] = ids[done + i];
      PLACE(int32_t, MODEL_POSITIONS)[i] = (int32_t)(position + done + i);
      PLACE(int32_t, MODEL_SLOTS)[i] = 0;
    }
    PLACE(int32_t, MODEL_WANTED)[0] = (int32_t)rows - 1;
    counts[MODEL_COUNT_ROWS] = (int64_t)rows;
    counts[MODEL_COUNT_OUTS] = 1;
    lockstep_call(MODEL_FORWARD, arenas, counts);
    done += rows;
  }
  return PLACE(const float, MODEL_LOGITS);
}

/* Choosing. */

static double draw(uint64_t *state) { /* splitmix64, in [0, 1) */
  uint64_t z = *state += 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static int32_t likeliest(const float *logits) {
  int32_t best = 0;
  for (int32_t v = 0; v < MODEL_VOCAB; v++) {
    if (isnan(logits[v])) fail(1, "logits", "one is not a number");
    if (logits[v] > logits[best]) best = v;
  }
  return best;
}

static int descending(const void *a, const void *b) {
  const float x = *(const float *)a, y = *(const float *)b;
  return (x < y) - (x > y);
}

/* The least logit that is kept. */
static float threshold(const float *logits, long top_k) {
  static float sorted[MODEL_VOCAB];
  if (top_k == 0 || top_k >= MODEL_VOCAB) return -INFINITY;
  memcpy(sorted, logits, sizeof sorted);
  qsort(sorted, MODEL_VOCAB, sizeof *sorted, descending);
  return sorted[top_k - 1];
}

static int32_t choose(const float *logits, const Options *o, uint64_t *state) {
  const int32_t best = likeliest(logits);
  if (o->temperature == 0) return best;
  const float least = threshold(logits, o->top_k);
  double total = 0;
  for (int32_t v = 0; v < MODEL_VOCAB; v++)
    if (logits[v] >= least) total += exp((logits[v] - (double)logits[best]) / o->temperature);
  double left = draw(state) * total;
  for (int32_t v = 0; v < MODEL_VOCAB; v++) {
    if (logits[v] < least) continue;
    left -= exp((logits[v] - (double)logits[best]) / o->temperature);
    if (left < 0) return v;
  }
  return best;
}

/* Printing. */

static void print_ids(const Tokenizer *t, const char *text, size_t n, int markup) {
  for (size_t begin = 0; begin <= n;) {
    const size_t length = strnlen(text + begin, n - begin);
    Ids ids = {0};
    const char *why = tokenizer_encode(t, text + begin, length, markup, &ids);
    if (why) fail(2, "text", why);
    for (size_t i = 0; i < ids.n; i++) printf(i ? " %d" : "%d", ids.id[i]);
    putchar('\n');
    free(ids.id);
    begin += length + 1;
  }
}

static void print_token(const Tokenizer *t, int32_t id, int as_id) {
  size_t n;
  const char *text = tokenizer_text(t, id, &n);
  if (as_id)
    printf("%d ", id);
  else if (!tokenizer_is_control(t, id))
    fwrite(text, 1, n, stdout);
  fflush(stdout);
}

static void go_on(const Tokenizer *t, const Ids *prompt, const Options *o) {
  uint64_t state = o->seed;
  size_t length = prompt->n;
  const float *logits = read_tokens(prompt->id, length, 0);
  for (long i = 0;; i++) {
    const int32_t id = choose(logits, o, &state);
    const int is_last = tokenizer_is_stop(t, id) && !o->ignore_eos;
    if (!is_last || o->ids) print_token(t, id, o->ids);
    if (is_last || length == (size_t)o->context || i + 1 == o->max_tokens) break;
    logits = read_tokens(&id, 1, length++);
  }
  putchar('\n');
}

int main(int argc, char **argv) {
  const Options o = parse(argc, argv);
  const char *why, *path = beside(argv[0], "tokenizer.bin");
  const Tokenizer *t = tokenizer_open(path, &why);
  if (t == NULL) fail(4, path, why);
  size_t n = o.prompt ? strlen(o.prompt) : 0;
  const char *text = o.prompt ? o.prompt : read_all(stdin, &n);
  if (o.tokenize) {
    print_ids(t, text, n, o.special);
    return 0;
  }
  Ids ids = {0};
  if (tokenizer_first(t) >= 0) ids_add(&ids, tokenizer_first(t));
  why = tokenizer_encode(t, text, n, o.special, &ids);
  if (why) fail(2, "prompt", why);
  if (ids.n == 0) fail(2, "prompt", "expected at least one token");
  if (ids.n > (size_t)o.context) fail(2, "prompt", "it is longer than the context");
  open_model(argv[0], (int)o.threads);
  go_on(t, &ids, &o);
  return 0;
}
