/* A text is cut at the tokens that have names, then into words, and each word's bytes are merged.
 *
 * Words are what the expressions of llama.cpp's pre-tokenizers match, here as functions: each gives
 * the length of the word at the beginning of some characters. What they call a letter, a number, a
 * mark and a blank stands in unicode.h. */
#define _GNU_SOURCE
#include "tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "unicode.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the files beside this program are little-endian"
#endif

enum { NORMAL = 1, CONTROL = 3 };
enum { GPT2, DIGITS_THEN_GPT2, WORDS, WORDS_DIGITS_BY_THREE, WORDS_WITH_MARKS, RUNS_OF_DIGITS };

typedef struct {
  int32_t left, right, merged, rank;
} Merge;

/* tokenizer.bin: this head; the stops; for each token where its bytes begin, and one more; the kind
 * of each; the token of each byte or -1; merges as left, right, merged; the tokens with names, the
 * longest first; the bytes. */
typedef struct {
  char magic[8];
  int32_t n_tokens, n_merges, n_stops, n_named, n_bytes, splitting, whole_words, first;
} Head;

struct Tokenizer {
  Head head;
  const int32_t *stops, *begins, *kinds, *byte_ids, *merges, *named;
  const char *bytes;
  Merge *table;   /* by left and right; empty places have left = -1 */
  int32_t *words; /* tokens by their bytes, where a whole word may be one; -1 is empty */
  size_t table_mask, words_mask;
  void *file;
};

static void *checked(void *memory) {
  if (memory == NULL) {
    fputs("not enough memory\n", stderr);
    exit(3);
  }
  return memory;
}

void ids_add(Ids *ids, int32_t id) {
  if (ids->n == ids->room) {
    ids->room = ids->room ? 2 * ids->room : 64;
    ids->id = checked(realloc(ids->id, ids->room * sizeof *ids->id));
  }
  ids->id[ids->n++] = id;
}

/* Reading. */

static size_t mixed(uint64_t key) {
  key *= 0x9E3779B97F4A7C15u;
  return (size_t)(key ^ key >> 29);
}

static size_t hash_bytes(const char *bytes, size_t n) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (size_t i = 0; i < n; i++) hash = (hash ^ (unsigned char)bytes[i]) * 0x100000001B3u;
  return mixed(hash);
}

static size_t hash_pair(int32_t left, int32_t right) {
  return mixed((uint64_t)(uint32_t)left << 32 | (uint32_t)right);
}

static size_t mask_for(size_t n) {
  size_t size = 16;
  while (size < 2 * n) size *= 2;
  return size - 1;
}

static void fill_tables(Tokenizer *t) {
  t->table_mask = mask_for((size_t)t->head.n_merges);
  t->table = checked(malloc((t->table_mask + 1) * sizeof *t->table));
  for (size_t i = 0; i <= t->table_mask; i++) t->table[i].left = -1;
  for (int32_t rank = 0; rank < t->head.n_merges; rank++) {
    const int32_t *m = t->merges + 3 * rank;
    size_t i = hash_pair(m[0], m[1]) & t->table_mask;
    while (t->table[i].left >= 0) i = (i + 1) & t->table_mask;
    t->table[i] = (Merge){m[0], m[1], m[2], rank};
  }
  if (!t->head.whole_words) return;
  t->words_mask = mask_for((size_t)t->head.n_tokens);
  t->words = checked(malloc((t->words_mask + 1) * sizeof *t->words));
  memset(t->words, 0xFF, (t->words_mask + 1) * sizeof *t->words);
  for (int32_t id = 0; id < t->head.n_tokens; id++) {
    if (t->kinds[id] != NORMAL) continue;
    const size_t n = (size_t)(t->begins[id + 1] - t->begins[id]);
    size_t i = hash_bytes(t->bytes + t->begins[id], n) & t->words_mask;
    while (t->words[i] >= 0) i = (i + 1) & t->words_mask;
    t->words[i] = id;
  }
}

static char *read_file(const char *path, size_t *n) {
  FILE *file = fopen(path, "rb");
  if (file == NULL) return NULL;
  char *bytes = NULL;
  size_t room = 0;
  *n = 0;
  do {
    room = room ? 2 * room : 1 << 16;
    bytes = checked(realloc(bytes, room));
    *n += fread(bytes + *n, 1, room - *n, file);
  } while (*n == room);
  fclose(file);
  return bytes;
}

Tokenizer *tokenizer_open(const char *path, const char **why) {
  size_t n;
  Tokenizer *t = checked(calloc(1, sizeof *t));
  char *file = t->file = read_file(path, &n);
  *why = "it cannot be read";
  if (file == NULL) return NULL;
  *why = "it is not a whole file of this program's";
  if (n < sizeof t->head) return NULL;
  memcpy(&t->head, file, sizeof t->head);
  const Head *h = &t->head;
  if (memcmp(h->magic, "LSTOKEN1", 8) != 0) return NULL;
  if (h->n_tokens < 1 || h->n_merges < 0 || h->n_stops < 0 || h->n_named < 0 || h->n_bytes < 0)
    return NULL;
  const size_t n_words = (size_t)h->n_stops + 2 * (size_t)h->n_tokens + 1 + 256 +
                         3 * (size_t)h->n_merges + (size_t)h->n_named;
  if (n != sizeof *h + 4 * n_words + (size_t)h->n_bytes) return NULL;
  t->stops = (const int32_t *)(const void *)(file + sizeof *h);
  t->begins = t->stops + h->n_stops;
  t->kinds = t->begins + h->n_tokens + 1;
  t->byte_ids = t->kinds + h->n_tokens;
  t->merges = t->byte_ids + 256;
  t->named = t->merges + 3 * h->n_merges;
  t->bytes = (const char *)(t->named + h->n_named);
  fill_tables(t);
  return t;
}

/* What characters are. */

static int is_in(const uint32_t (*ranges)[2], size_t n, uint32_t c) {
  size_t low = 0, high = n;
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (c > ranges[middle][1])
      low = middle + 1;
    else
      high = middle;
  }
  return low < n && c >= ranges[low][0];
}

#define IS_IN(ranges, c) is_in(ranges, sizeof ranges / sizeof *ranges, c)
static int is_letter(uint32_t c) { return IS_IN(UNICODE_LETTER, c); }
static int is_number(uint32_t c) { return IS_IN(UNICODE_NUMBER, c); }
static int is_digit(uint32_t c) { return IS_IN(UNICODE_DIGIT, c); }
static int is_mark(uint32_t c) { return IS_IN(UNICODE_MARK, c); }
static int is_blank(uint32_t c) { return IS_IN(UNICODE_SPACE, c); }
static int is_newline(uint32_t c) { return c == '\r' || c == '\n'; }
static int is_letter_or_mark(uint32_t c) { return is_letter(c) || is_mark(c); }
static int is_other(uint32_t c) { return !is_blank(c) && !is_letter(c) && !is_number(c); }
static int is_other_than_marks(uint32_t c) { return is_other(c) && !is_mark(c); }

/* How many characters from `i` on are of a kind. */
static size_t run(const uint32_t *c, size_t i, size_t n, int (*is)(uint32_t)) {
  size_t end = i;
  while (end < n && is(c[end])) end++;
  return end - i;
}

/* Words. */

static size_t ending(const uint32_t *c, size_t n, int any_case) {
  if (c[0] != '\'' || n < 2) return 0;
  const uint32_t low = any_case ? 0x20 : 0; /* turns ASCII capitals into small letters */
  const uint32_t a = c[1] < 128 ? c[1] | low : 0, b = n > 2 && c[2] < 128 ? c[2] | low : 0;
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
  return 0;
}

/* Blanks: all at the end of a text, else all but the last, which goes with what follows. */
static size_t blanks(const uint32_t *c, size_t n) {
  const size_t length = run(c, 0, n, is_blank);
  return length < n && length > 1 ? length - 1 : length;
}

static size_t word_gpt2(const uint32_t *c, size_t n) {
  static int (*const kinds[])(uint32_t) = {is_letter, is_number, is_other};
  size_t length = ending(c, n, 0);
  if (length) return length;
  const size_t skip = c[0] == ' ' && n > 1;
  for (int k = 0; k < 3; k++)
    if ((length = run(c, skip, n, kinds[k]))) return skip + length;
  return blanks(c, n);
}

static size_t word_words(const uint32_t *c, size_t n, int splitting) {
  const int marks = splitting == WORDS_WITH_MARKS;
  int (*const in_word)(uint32_t) = marks ? is_letter_or_mark : is_letter;
  size_t length = ending(c, n, 1);
  if (length) return length;
  if (!is_newline(c[0]) && !is_letter(c[0]) && !is_number(c[0]) && n > 1 &&
      (length = run(c, 1, n, in_word)))
    return 1 + length;
  if ((length = run(c, 0, n, in_word))) return length;
  if ((length = run(c, 0, n, is_number))) {
    const size_t most = splitting == WORDS_DIGITS_BY_THREE ? 3 : 1;
    return length < most ? length : most;
  }
  const size_t skip = c[0] == ' ' && n > 1;
  if ((length = run(c, skip, n, marks ? is_other_than_marks : is_other))) {
    length += skip;
    return length + run(c, length, n, is_newline);
  }
  length = run(c, 0, n, is_blank);
  while (length > 0 && !is_newline(c[length - 1])) length--;
  return length ? length : blanks(c, n);
}

/* Digits in threes from the right; all else is one word. */
static size_t word_runs(const uint32_t *c, size_t n) {
  if (!is_number(c[0])) {
    size_t length = 1;
    while (length < n && !is_number(c[length])) length++;
    return length;
  }
  const size_t length = run(c, 0, n, is_number);
  for (size_t i = 1; i < length; i++) {
    const size_t digits = run(c, i, n, is_digit);
    if (digits && digits % 3 == 0) return i;
  }
  return length;
}

static size_t word(int splitting, const uint32_t *c, size_t n) {
  if (splitting == GPT2) return word_gpt2(c, n);
  if (splitting == RUNS_OF_DIGITS) return word_runs(c, n);
  if (splitting != DIGITS_THEN_GPT2) return word_words(c, n, splitting);
  if (is_number(c[0])) return 1;
  size_t end = 1; /* a number ends the text of the second rule */
  while (end < n && !is_number(c[end])) end++;
  return word_gpt2(c, end);
}

/* Merges. */

static const Merge *merge_of(const Tokenizer *t, int32_t left, int32_t right) {
  for (size_t i = hash_pair(left, right) & t->table_mask; t->table[i].left >= 0;
       i = (i + 1) & t->table_mask)
    if (t->table[i].left == left && t->table[i].right == right) return &t->table[i];
  return NULL;
}

static int32_t whole_word(const Tokenizer *t, const char *bytes, size_t n) {
  if (!t->head.whole_words) return -1;
  for (size_t i = hash_bytes(bytes, n) & t->words_mask; t->words[i] >= 0;
       i = (i + 1) & t->words_mask) {
    const int32_t id = t->words[i];
    const size_t length = (size_t)(t->begins[id + 1] - t->begins[id]);
    if (length == n && memcmp(t->bytes + t->begins[id], bytes, n) == 0) return id;
  }
  return -1;
}

/* Merges the pair of lowest rank, of equals the one furthest left, until none is left. */
static const char *encode_word(const Tokenizer *t, const char *bytes, size_t n, Ids *ids) {
  const int32_t whole = whole_word(t, bytes, n);
  if (whole >= 0) {
    ids_add(ids, whole);
    return NULL;
  }
  int32_t *part = checked(malloc(n * sizeof *part));
  const Merge **next = checked(malloc(n * sizeof *next)); /* of a part and the one behind it */
  const char *why = NULL;
  for (size_t i = 0; i < n && why == NULL; i++) {
    part[i] = t->byte_ids[(unsigned char)bytes[i]];
    if (part[i] < 0) why = "it has a character outside of the model's alphabet";
  }
  for (size_t i = 0; why == NULL && i + 1 < n; i++) next[i] = merge_of(t, part[i], part[i + 1]);
  while (why == NULL) {
    size_t best = n;
    for (size_t i = 0; i + 1 < n; i++)
      if (next[i] && (best == n || next[i]->rank < next[best]->rank)) best = i;
    if (best == n) break;
    part[best] = next[best]->merged;
    n--;
    memmove(part + best + 1, part + best + 2, (n - best - 1) * sizeof *part);
    if (best + 1 < n) memmove(next + best + 1, next + best + 2, (n - best - 2) * sizeof *next);
    if (best > 0) next[best - 1] = merge_of(t, part[best - 1], part[best]);
    next[best] = best + 1 < n ? merge_of(t, part[best], part[best + 1]) : NULL;
  }
  for (size_t i = 0; why == NULL && i < n; i++) ids_add(ids, part[i]);
  free(part);
  free(next);
  return why;
}

/* Characters; -1 where it is not UTF-8. */
static int decode_character(const unsigned char *s, size_t n, uint32_t *c) {
  static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
  const int length = s[0] < 0x80       ? 1
                     : s[0] >> 5 == 6  ? 2
                     : s[0] >> 4 == 14 ? 3
                     : s[0] >> 3 == 30 ? 4
                                       : 0;
  if (length == 0 || (size_t)length > n) return -1;
  *c = length == 1 ? s[0] : s[0] & (0x7Fu >> length);
  for (int i = 1; i < length; i++) {
    if (s[i] >> 6 != 2) return -1;
    *c = *c << 6 | (s[i] & 0x3F);
  }
  const int is_half = *c >= 0xD800 && *c < 0xE000;
  return *c < least[length] || *c > 0x10FFFF || is_half ? -1 : length;
}

static const char *encode_plain(const Tokenizer *t, const char *bytes, size_t n, Ids *ids) {
  uint32_t *c = checked(malloc((n + 1) * sizeof *c));
  size_t *at = checked(malloc((n + 1) * sizeof *at)), n_characters = 0;
  const char *why = NULL;
  for (size_t i = 0; i < n && why == NULL;) {
    const int length = decode_character((const unsigned char *)bytes + i, n - i, &c[n_characters]);
    if (length < 0) why = "it is not UTF-8";
    at[n_characters++] = i;
    i += length > 0 ? (size_t)length : 1;
  }
  at[n_characters] = n;
  for (size_t i = 0; i < n_characters && why == NULL;) {
    const size_t end = i + word(t->head.splitting, c + i, n_characters - i);
    why = encode_word(t, bytes + at[i], at[end] - at[i], ids);
    i = end;
  }
  free(c);
  free(at);
  return why;
}

/* Texts, of which some became a token. */

typedef struct {
  size_t begin, end;
  int32_t id; /* -1: a text */
} Piece;

typedef struct {
  Piece *piece;
  size_t n, room;
} Pieces;

static void pieces_add(Pieces *p, size_t begin, size_t end, int32_t id) {
  if (begin == end) return;
  if (p->n == p->room) {
    p->room = p->room ? 2 * p->room : 16;
    p->piece = checked(realloc(p->piece, p->room * sizeof *p->piece));
  }
  p->piece[p->n++] = (Piece){begin, end, id};
}

static void cut_at(const Tokenizer *t, const char *text, int32_t id, Pieces *pieces) {
  size_t n;
  const char *name = tokenizer_text(t, id, &n);
  Pieces cut = {0};
  for (size_t k = 0; k < pieces->n; k++) {
    Piece p = pieces->piece[k];
    const char *found;
    while (p.id < 0 && (found = memmem(text + p.begin, p.end - p.begin, name, n))) {
      const size_t at = (size_t)(found - text);
      pieces_add(&cut, p.begin, at, -1);
      pieces_add(&cut, at, at + n, id);
      p.begin = at + n;
    }
    pieces_add(&cut, p.begin, p.end, p.id);
  }
  free(pieces->piece);
  *pieces = cut;
}

const char *tokenizer_encode(const Tokenizer *t, const char *text, size_t n, int markup, Ids *ids) {
  Pieces pieces = {0};
  const char *why = NULL;
  pieces_add(&pieces, 0, n, -1);
  for (int32_t k = 0; k < t->head.n_named; k++) {
    size_t length;
    const char *name = tokenizer_text(t, t->named[k], &length);
    if (tokenizer_is_control(t, t->named[k]) && !markup) continue;
    if (length && memmem(text, n, name, length)) cut_at(t, text, t->named[k], &pieces);
  }
  for (size_t k = 0; k < pieces.n && why == NULL; k++) {
    const Piece p = pieces.piece[k];
    if (p.id >= 0)
      ids_add(ids, p.id);
    else
      why = encode_plain(t, text + p.begin, p.end - p.begin, ids);
  }
  free(pieces.piece);
  return why;
}

const char *tokenizer_text(const Tokenizer *t, int32_t id, size_t *n) {
  *n = 0;
  if (id < 0 || id >= t->head.n_tokens) return "";
  *n = (size_t)(t->begins[id + 1] - t->begins[id]);
  return t->bytes + t->begins[id];
}

int tokenizer_is_control(const Tokenizer *t, int32_t id) {
  return id >= 0 && id < t->head.n_tokens && t->kinds[id] == CONTROL;
}

int tokenizer_is_stop(const Tokenizer *t, int32_t id) {
  for (int32_t k = 0; k < t->head.n_stops; k++)
    if (t->stops[k] == id) return 1;
  return 0;
}

int32_t tokenizer_first(const Tokenizer *t) { return t->head.first; }
