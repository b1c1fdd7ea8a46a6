/* A question to token ids, as the authors' code does it for the phi template.
 *
 *     st = prompt_build(ids, &n, PROMPT_IDS_MAX, t, &question, has_image, &e);
 *
 * The template, with the image marker in its place:
 *
 *     A chat between a curious user ... user's questions. USER: <image>\nQUESTION ASSISTANT:
 *
 * The text before and after the marker is tokenised separately. What a person typed is never read as a
 * special token: the part behind the marker is tokenised as plain text, which gives the same ids for
 * every ordinary question. A raw prompt is taken as it is, special tokens included, and may hold the
 * marker once. Source: mipha/conversation.py and tokenizer_image_token of the authors. Any thread. */
#ifndef LM_NODE_PROMPT_H
#define LM_NODE_PROMPT_H

#include "model/tokenizer.h"

#define PROMPT_IMAGE_ID (-200) /* stands in ids where the image's rows go */
#define PROMPT_IDS_MAX  16384

/* Errors: BAD_PROMPT (a question that holds "<image>", a raw prompt with the marker twice, without an
 * image, or at its end), PROMPT_TOO_LONG, BAD_FORMAT (not UTF-8). */
MUST_USE status prompt_build(int32_t *ids, size_t *n_ids, size_t max_ids, const tokenizer *t,
                             const char *question, bool is_raw, bool has_image, err *e);

#endif
