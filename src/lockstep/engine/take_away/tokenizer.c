/* A text is cut at the tokens that have names, then into words, and each word's bytes are merged.
 *
 * Of a byte-level vocabulary a word is what words.c says, and its bytes are merged. Of one in the
 * style of SentencePiece a blank is spelled U+2581, a word begins with its blanks, its characters are
 * merged, and what is no token in the end becomes those of its bytes. */
#define _GNU_SOURCE
#include "tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "words.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the files beside this program are little-endian"
#endif

enum { NORMAL = 1, CONTROL = 3 };
enum { BLANK = 0x2581 }; /* how SentencePiece spells a blank */
/* Which texts between tokens get a blank in front: none, each, that at the beginning if it has no
 * blank there, or each that has none. */
enum { NO_PREFIX, PREFIX, PREFIX_FIRST, PREFIX_WHERE_NONE };

typedef struct {
  int32_t left, right, merged, rank;
} Merge;

/* tokenizer.bin: this head; the stops; for each token where its bytes begin, and one more; the kind
 * of each; the token of each byte or -1; merges as left, right, merged, rank; the tokens with names,
 * the longest first; characters in their order, each with its token, or a number from n_tokens on if
 * it is none but may merge; the bytes. */
typedef struct {
  char magic[8];
  int32_t n_tokens, n_merges, n_stops, n_named, n_characters, n_bytes, splitting, whole_words;
  int32_t first, unknown, prefix, one_word;
  uint32_t sum; /* of all other little-endian words of the file */
} Head;

struct Tokenizer {
  Head head;
  const int32_t *stops, *begins, *kinds, *byte_ids, *merges, *named, *characters;
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
  for (int32_t k = 0; k < t->head.n_merges; k++) {
    const int32_t *m = t->merges + 4 * k;
    size_t i = hash_pair(m[0], m[1]) & t->table_mask;
    while (t->table[i].left >= 0) i = (i + 1) & t->table_mask;
    t->table[i] = (Merge){m[0], m[1], m[2], m[3]};
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

static uint32_t sum_of_words(const char *bytes, size_t n) {
  uint32_t sum = 0;
  for (size_t i = 0; i < n; i++) sum += (uint32_t)(unsigned char)bytes[i] << 8 * (i % 4);
  return sum;
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
  if (memcmp(h->magic, "LSTOKEN3", 8) != 0) return NULL;
  if (h->n_tokens < 1 || h->n_merges < 0 || h->n_stops < 0 || h->n_named < 0 || h->n_bytes < 0 ||
      h->n_characters < 0)
    return NULL;
  const size_t n_words = (size_t)h->n_stops + 2 * (size_t)h->n_tokens + 1 + 256 +
                         4 * (size_t)h->n_merges + (size_t)h->n_named + 2 * (size_t)h->n_characters;
  if (n != sizeof *h + 4 * n_words + (size_t)h->n_bytes) return NULL;
  *why = "its bytes are not those of the model; export it again";
  if (h->sum != sum_of_words(file, n) - h->sum) return NULL;
  t->stops = (const int32_t *)(const void *)(file + sizeof *h);
  t->begins = t->stops + h->n_stops;
  t->kinds = t->begins + h->n_tokens + 1;
  t->byte_ids = t->kinds + h->n_tokens;
  t->merges = t->byte_ids + 256;
  t->named = t->merges + 4 * h->n_merges;
  t->characters = t->named + h->n_named;
  t->bytes = (const char *)(t->characters + 2 * h->n_characters);
  fill_tables(t);
  return t;
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

/* Merges the pair of lowest rank, of equals the one furthest left, until none is left. Returns how
 * many parts remain. */
static size_t merge_parts(const Tokenizer *t, int32_t *part, size_t n) {
  const Merge **next =
      checked(malloc((n + 1) * sizeof *next)); /* of a part and the one behind it */
  for (size_t i = 0; i + 1 < n; i++) next[i] = merge_of(t, part[i], part[i + 1]);
  for (;;) {
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
  free(next);
  return n;
}

static const char NO_ALPHABET[] = "it has a character outside of the model's alphabet";

static const char *encode_bytes(const Tokenizer *t, const char *bytes, size_t n, Ids *ids) {
  const int32_t whole = whole_word(t, bytes, n);
  if (whole >= 0) {
    ids_add(ids, whole);
    return NULL;
  }
  int32_t *part = checked(malloc(n * sizeof *part));
  int is_known = 1;
  for (size_t i = 0; i < n; i++) {
    part[i] = t->byte_ids[(unsigned char)bytes[i]];
    is_known &= part[i] >= 0;
  }
  if (is_known) n = merge_parts(t, part, n);
  for (size_t i = 0; is_known && i < n; i++) ids_add(ids, part[i]);
  free(part);
  return is_known ? NULL : NO_ALPHABET;
}

/* The part that a character is at first: less than -1 if it neither is a token nor merges. */
static int32_t character_part(const Tokenizer *t, uint32_t c) {
  size_t low = 0, high = (size_t)t->head.n_characters;
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if ((uint32_t)t->characters[2 * middle] < c)
      low = middle + 1;
    else
      high = middle;
  }
  const int is_found = low < (size_t)t->head.n_characters && (uint32_t)t->characters[2 * low] == c;
  return is_found ? t->characters[2 * low + 1] : -2 - (int32_t)c;
}

/* A character that is no token: the tokens of its bytes, or the one for what is unknown. */
static const char *encode_unknown(const Tokenizer *t, uint32_t c, Ids *ids) {
  const int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
  int32_t id[4];
  int is_known = 1;
  for (int i = n - 1; i >= 0; i--, c >>= 6) {
    const uint32_t lead = n == 1 ? 0 : i == 0 ? 0xF00u >> n & 0xFF : 0x80;
    id[i] = t->byte_ids[lead | (n > 1 && i > 0 ? c & 0x3F : c)];
    is_known &= id[i] >= 0;
  }
  if (!is_known && t->head.unknown < 0) return NO_ALPHABET;
  if (!is_known) ids_add(ids, t->head.unknown);
  for (int i = 0; is_known && i < n; i++) ids_add(ids, id[i]);
  return NULL;
}

static const char *encode_characters(const Tokenizer *t, const uint32_t *c, size_t n, Ids *ids) {
  int32_t *part = checked(malloc((n + 1) * sizeof *part));
  const char *why = NULL;
  for (size_t i = 0; i < n; i++) part[i] = character_part(t, c[i]);
  n = merge_parts(t, part, n);
  for (size_t i = 0; i < n && why == NULL; i++) {
    if (part[i] >= 0 && part[i] < t->head.n_tokens) {
      ids_add(ids, part[i]);
      continue;
    }
    uint32_t lost = (uint32_t)(-2 - part[i]);
    for (int32_t k = 0; part[i] >= 0 && k < t->head.n_characters; k++)
      if (t->characters[2 * k + 1] == part[i]) lost = (uint32_t)t->characters[2 * k];
    why = encode_unknown(t, lost, ids);
  }
  free(part);
  return why;
}

/* Words with their blanks; those at the end of a text are one. */
static const char *encode_sentence(const Tokenizer *t, const uint32_t *c, size_t n, Ids *ids) {
  const char *why = NULL;
  for (size_t i = 0; i < n && why == NULL;) {
    size_t end = i;
    while (end < n && c[end] == BLANK) end++;
    while (end < n && c[end] != BLANK) end++;
    if (t->head.one_word) end = n;
    why = encode_characters(t, c + i, end - i, ids);
    i = end;
  }
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

/* A text between tokens; `is_first` says that nothing is before it. */
static const char *encode_plain(const Tokenizer *t, const char *bytes, size_t n, int is_first,
                                Ids *ids) {
  uint32_t *memory = checked(malloc((n + 2) * sizeof *memory)), *c = memory + 1;
  size_t *at = checked(malloc((n + 1) * sizeof *at)), n_characters = 0;
  const char *why = NULL;
  for (size_t i = 0; i < n && why == NULL;) {
    const int length = decode_character((const unsigned char *)bytes + i, n - i, &c[n_characters]);
    if (length < 0) why = "it is not UTF-8";
    at[n_characters++] = i;
    i += length > 0 ? (size_t)length : 1;
  }
  at[n_characters] = n;
  if (why == NULL && t->head.splitting == CHARACTERS) {
    for (size_t i = 0; i < n_characters; i++) c[i] = c[i] == ' ' ? BLANK : c[i];
    const int prefix = t->head.prefix, has_none = c[0] != BLANK;
    const int is_put = prefix == PREFIX || (prefix == PREFIX_FIRST && is_first && has_none) ||
                       (prefix == PREFIX_WHERE_NONE && has_none);
    memory[0] = BLANK;
    why = encode_sentence(t, c - is_put, n_characters + (size_t)is_put, ids);
  } else {
    for (size_t i = 0; i < n_characters && why == NULL;) {
      const size_t end = i + word_length(t->head.splitting, c + i, n_characters - i);
      why = encode_bytes(t, bytes + at[i], at[end] - at[i], ids);
      i = end;
    }
  }
  free(memory);
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
      why = encode_plain(t, text + p.begin, p.end - p.begin, k == 0, ids);
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
