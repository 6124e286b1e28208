/* Byte-level BPE or SentencePiece: text to ids and back, as the model's own tokenizer does it. */
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

typedef struct Tokenizer Tokenizer;

typedef struct {
  int32_t *id;
  size_t n, room;
} Ids;

/* Reads tokenizer.bin; NULL, with the reason in `*why`, if it cannot be read. */
Tokenizer *tokenizer_open(const char *path, const char **why);

/* Adds the ids of a text. The names of control tokens count in markup only. Returns NULL, or why the
 * text has no ids. */
const char *tokenizer_encode(const Tokenizer *t, const char *text, size_t n, int markup, Ids *ids);

/* The bytes that an id stands for. */
const char *tokenizer_text(const Tokenizer *t, int32_t id, size_t *n);

int tokenizer_is_control(const Tokenizer *t, int32_t id);
int tokenizer_is_stop(const Tokenizer *t, int32_t id);

/* The id that a text begins with, or -1. */
int32_t tokenizer_first(const Tokenizer *t);

void ids_add(Ids *ids, int32_t id);

#endif
