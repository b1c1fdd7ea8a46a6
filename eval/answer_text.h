/* Answers in the form in which the benchmarks compare them.
 *
 *     answer_text_normalise(&out, "Two dogs.");      // "2 dogs"
 *
 * Source: the "EvalAI processor" that TextVQA, VQAv2 and VizWiz share (the authors' m4c_evaluator.py). Any thread. */
#ifndef EVAL_ANSWER_TEXT_H
#define EVAL_ANSWER_TEXT_H

#include "base/buf.h"

/* Lower case, punctuation out as the processor has it, number words as digits, articles dropped, apostrophes put
 * back into contractions. out is cleared; afterwards it ends with a zero. Errors: NO_MEMORY, TOO_LARGE. */
MUST_USE status answer_text_normalise(buf *out, const char *text);

#endif
