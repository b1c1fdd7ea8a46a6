/* A question to token ids, as the authors' code does it.
 *
 *     st = prompt_build(ids, &n, PROMPT_IDS_MAX, t, prompt_template_find("phi"), &question, n_images, &e);
 *
 * With the template "phi" and one turn, the image in its place:
 *
 *     A chat between a curious user ... user's questions. USER: <image>\nQUESTION ASSISTANT:
 *
 * Several images stand there one after another, each followed by a newline. Texts that hold the marker
 * "<image>" themselves say where the images go, in order: then there is one for each, over the question and
 * the turns before it together, and nothing is put in front.
 *
 * The texts before, between and after images are tokenised separately; what the tokenizer puts in front of a text
 * stands once, in front of all. What a person typed is never read as a special token, which gives the same ids
 * for every ordinary question. A raw prompt is taken as it is, special tokens included, and says itself where its
 * images go. Source: mipha/conversation.py and tokenizer_image_token of the authors. Any thread. */
#ifndef LM_NODE_PROMPT_H
#define LM_NODE_PROMPT_H

#include "lm_node/prompt_template.h"
#include "model/tokenizer.h"
#include "proto/request.h"

#define PROMPT_IMAGE_ID (-200) /* stands in ids where the image's rows go */
#define PROMPT_IDS_MAX  16384

/* form: of every question that is not raw. Errors: BAD_PROMPT (another number of markers than of images, with both
 * numbers, though one image may go without a place in a raw prompt; a raw prompt that ends with a marker, or is
 * empty), PROMPT_TOO_LONG, BAD_FORMAT (not UTF-8). */
MUST_USE status prompt_build(int32_t *ids, size_t *n_ids, size_t max_ids, const tokenizer *t,
                             const prompt_template *form, const request_question *asked, size_t n_images, err *e);

#endif
