/* Words are what the expressions of llama.cpp's pre-tokenizers match, here as functions: each gives
 * the length of the word at the beginning of some characters. What they call a letter, a number, a
 * mark, punctuation and a blank stands in unicode.h. */
#include "words.h"

#include "unicode.h"

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
static int is_mark(uint32_t c) { return IS_IN(UNICODE_MARK, c); }
static int is_punctuation(uint32_t c) { return IS_IN(UNICODE_PUNCTUATION, c); }
static int is_blank(uint32_t c) { return IS_IN(UNICODE_SPACE, c); }
static int is_newline(uint32_t c) { return c == '\r' || c == '\n'; }
static int is_digit(uint32_t c) { return c >= '0' && c <= '9'; }
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

/* Runs of punctuation, and the words of GPT-2 between them, of which numbers are split off; of these
 * three ASCII digits in a row are one word. */
static size_t word_between_punctuation(const uint32_t *c, size_t n) {
  const size_t marks = run(c, 0, n, is_punctuation);
  if (marks) return marks;
  size_t end = 1;
  while (end < n && !is_punctuation(c[end])) end++;
  const size_t length = word_gpt2(c, end);
  if (!is_number(c[0])) return length > 1 && is_number(c[1]) ? 1 : length;
  for (size_t i = 0; i + 3 <= length; i++)
    if (run(c, i, i + 3, is_digit) == 3) return i ? i : 3;
  return length;
}

size_t word_length(int splitting, const uint32_t *c, size_t n) {
  if (splitting == GPT2) return word_gpt2(c, n);
  if (splitting == RUNS_OF_DIGITS) return word_runs(c, n);
  if (splitting == PUNCTUATION_THEN_GPT2) return word_between_punctuation(c, n);
  if (splitting != DIGITS_THEN_GPT2) return word_words(c, n, splitting);
  if (is_number(c[0])) return 1;
  size_t end = 1; /* a number ends the text of the second rule */
  while (end < n && !is_number(c[end])) end++;
  return word_gpt2(c, end);
}
