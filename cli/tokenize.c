/* `mipha tokenize`: text to token ids as JSON, and back. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/model_place.h"
#include "cli/service.h"
#include "model/tokenizer.h"

#define TEXT_BYTES_MAX (64u << 20)

static const option_row rows[] = {
    MODEL_ROW,
    {"decode", 'd', OPTION_FLAG, NULL, NULL, 0, 0, "the text is a JSON list of ids: print what they say"},
    {"plain", 0, OPTION_FLAG, NULL, NULL, 0, 0, "special tokens in the text are ordinary text"},
    {0}};

const option_table tokenize_table = {
    .program = "mipha tokenize",
    .positional = "TEXT|-",
    .purpose = "turn text into the model's token ids, or back",
    .example = "  mipha tokenize \"a red dog\"\n"
               "  mipha tokenize \"a red dog\" | mipha tokenize --decode -\n",
    .rows = rows,
    .positional_min = 1,
    .positional_max = 1};

static status read_text(buf *text, const char *word, err *e) {
    buf_init(text, TEXT_BYTES_MAX);
    status st = STATUS_OK;
    if (strcmp(word, "-") != 0) {
        st = buf_append_text(text, word);
    } else {
        char block[65536];
        for (size_t n; st == STATUS_OK && (n = fread(block, 1, sizeof block, stdin)) > 0;)
            st = buf_append(text, block, n);
        if (st == STATUS_OK && ferror(stdin)) return fail_errno(e, STATUS_IO, "standard input");
    }
    if (st == STATUS_OK) st = buf_append(text, "", 0);
    return st == STATUS_OK ? st : fail(e, st, "text: %s (limit %u bytes)", status_text((int)st), TEXT_BYTES_MAX);
}

static status encode(const tokenizer *t, const buf *text, tokenizer_mode mode, err *e) {
    size_t n_max = 2 * text->len_bytes + 1, n = 0; /* a token stands for a byte or more, or for a space put in front */
    int32_t *ids = calloc(n_max, sizeof *ids);
    if (!ids) return fail(e, STATUS_NO_MEMORY, "%zu ids: out of memory", n_max);
    status st = tokenizer_encode(t, (const char *)text->data, text->len_bytes, mode, ids, n_max, &n, e);
    if (st == STATUS_OK) {
        (void)putchar('[');
        for (size_t i = 0; i < n; i++) (void)printf("%s%d", i ? "," : "", ids[i]);
        (void)fputs("]\n", stdout);
    }
    free(ids);
    return st;
}

static status take_ids(int32_t *ids, const tokenizer *t, const json_t *list, err *e) {
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *id = json_array_get(list, i);
        json_int_t v = json_integer_value(id);
        if (!json_is_integer(id) || v < 0 || v >= tokenizer_n_ids(t))
            return fail(e, STATUS_BAD_ARGUMENT, "element %zu is not a token id of 0 to %d", i,
                        tokenizer_n_ids(t) - 1);
        ids[i] = (int32_t)v;
    }
    return STATUS_OK;
}

static status decode(const tokenizer *t, const buf *text, err *e) {
    json_error_t where;
    json_t *list = json_loadb((const char *)text->data, text->len_bytes, 0, &where);
    if (!json_is_array(list)) {
        json_decref(list);
        return fail(e, STATUS_BAD_ARGUMENT, "not a JSON list of ids%s%s", list ? "" : ": ", list ? "" : where.text);
    }
    size_t n = json_array_size(list);
    int32_t *ids = calloc(n + 1, sizeof *ids);
    buf out;
    buf_init(&out, (size_t)1 << 30);
    status st = ids ? take_ids(ids, t, list, e) : fail(e, STATUS_NO_MEMORY, "%zu ids: out of memory", n);
    if (st == STATUS_OK && (st = tokenizer_decode(t, ids, n, false, &out)) != STATUS_OK)
        (void)fail(e, st, "decoding: %s", status_text((int)st));
    if (st == STATUS_OK) {
        (void)fwrite(out.data, 1, out.len_bytes, stdout);
        (void)putchar('\n');
    }
    buf_deinit(&out);
    free(ids);
    json_decref(list);
    return st;
}

status tokenize_run(const options *o, int *exit_code, err *e) {
    char dir[MODEL_PLACE_BYTES];
    tokenizer *t = NULL;
    buf text = {0};
    status st = model_place(dir, options_string(o, "model"), e);
    if (st == STATUS_OK) st = tokenizer_open(&t, dir, e);
    if (st != STATUS_OK) *exit_code = exit_code_not_started(st);
    if (st == STATUS_OK) st = read_text(&text, o->positional[0], e);
    if (st == STATUS_OK)
        st = options_flag(o, "decode")
                 ? decode(t, &text, e)
                 : encode(t, &text, options_flag(o, "plain") ? TOKENIZER_PLAIN : TOKENIZER_WITH_ADDED, e);
    buf_deinit(&text);
    tokenizer_close(&t);
    return st;
}
