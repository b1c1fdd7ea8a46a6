/* The forms in which the authors' models are asked.
 *
 *     const prompt_template *t = prompt_template_find("gemma");       // NULL: no such name
 *     if (!t) t = prompt_template_of(model_get_config(m)->decoder.kind);
 *
 * A prompt is the system text, then for each turn before_question, question, before_answer, the answer in
 * answer_open and answer_close; the last turn ends with before_answer, from which the model goes on. An image
 * and a newline stand in front of the first question, unless the texts say where images go. Constant: any thread. Source: mipha/conversation.py;
 * LLaVA's conversation.py ("vicuna_v1"), and what the processor of its Hugging Face format asks ("llava-hf"). */
#ifndef LM_NODE_PROMPT_TEMPLATE_H
#define LM_NODE_PROMPT_TEMPLATE_H

#include "model/decoder_family.h"

typedef struct {
    const char *names[6]; /* NULL behind the last */
    const char *system;
    const char *before_question, *before_answer;
    const char *answer_open, *answer_close;
    const char *stop; /* the special token that ends an answer, besides the tokenizer's own; NULL: none */
} prompt_template;

const prompt_template *prompt_template_find(const char *name);

/* What the programs of a family's authors use. */
const prompt_template *prompt_template_of(model_decoder_kind kind);

/* Every name, separated by ", ". */
const char *prompt_template_names(void);

#endif
