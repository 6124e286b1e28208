/* Into which words a text falls before the bytes of each are merged. */
#ifndef WORDS_H
#define WORDS_H

#include <stddef.h>
#include <stdint.h>

/* The last is not split here: its words are not merged byte by byte. */
enum {
  GPT2,
  DIGITS_THEN_GPT2,
  WORDS,
  WORDS_DIGITS_BY_THREE,
  WORDS_WITH_MARKS,
  RUNS_OF_DIGITS,
  PUNCTUATION_THEN_GPT2,
  CHARACTERS
};

/* The length of the word that some characters, one at least, begin with. */
size_t word_length(int splitting, const uint32_t *c, size_t n);

#endif
