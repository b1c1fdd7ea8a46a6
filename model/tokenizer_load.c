/* tokenizer.json, or the three older files, into tables indexed by id.
 *
 * While loading, pieces are looked up by their text in the vocabulary's JSON object; after that nothing is
 * looked up by text any more: single bytes have a table, merges go from two ids to one, and decoding goes
 * from an id to bytes. What a merge names must exist, ids are unique, and every byte has a piece, so
 * encoding cannot meet anything it does not know.
 *
 * Two kinds are read. GPT-2's merges bytes, each written as one character of a map; SentencePiece's merges
 * characters, with U+2581 for the space, and has entries like <0x0A> for the bytes of characters it does not
 * know (byte fallback). What surrounds the model in tokenizer.json is tokenizer_pipeline.c's. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "model/byte_map.h"
#include "model/json_file.h"
#include "model/tokenizer_internal.h"
#include "model/utf8.h"

#define PATH_BYTES   4096
#define FILE_LIMITS  ((json_file_limits){TOKENIZER_FILE_BYTES_MAX, 8u << 20})
#define TEXTS_BYTES_MAX (TOKENIZER_FILE_BYTES_MAX * 2)
#define DEFAULT_EOS  "<|endoftext|>"

typedef struct {
    tokenizer *t;
    const json_t *vocab; /* text -> id */
    const char *label;   /* the file's name in errors */
    err *e;
} loader;

/* The id of a vocabulary text, -1 when it has none. */
static int32_t id_of(const loader *l, const char *text) {
    const json_t *value = json_object_get(l->vocab, text);
    return value ? (int32_t)json_integer_value(value) : -1;
}

/* --- pieces ----------------------------------------------------------------------------------- */

/* The bytes a vocabulary text stands for. A text with a character outside the byte map stands for itself
 * (added tokens of plain spaces do). */
static status append_decoded(buf *texts, const char *text, bool *is_word) {
    size_t len = strlen(text), start = texts->len_bytes;
    *is_word = true;
    for (size_t at = 0; at < len;) {
        uint32_t c = 0;
        size_t n;
        if (utf8_next((const unsigned char *)text + at, len - at, &c, &n) != UTF8_CHARACTER ||
            byte_map_byte(c) < 0) {
            *is_word = false;
            break;
        }
        unsigned char byte = (unsigned char)byte_map_byte(c);
        status st = buf_append(texts, &byte, 1);
        if (st != STATUS_OK) return st;
        at += n;
    }
    if (*is_word) return STATUS_OK;
    texts->len_bytes = start;
    return buf_append(texts, text, len);
}

/* The byte that an entry like <0x0A> stands for, or -1. */
static int byte_of_entry(const char *text) {
    static const char DIGITS[] = "0123456789abcdefABCDEF";
    if (strlen(text) != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return -1;
    if (!strchr(DIGITS, text[3]) || !strchr(DIGITS, text[4])) return -1;
    return (int)strtol(text + 3, NULL, 16);
}

/* The text with U+2581 as spaces, or the byte of an entry for one. */
static status append_spaced(buf *texts, const char *text, bool *is_byte) {
    int byte = byte_of_entry(text);
    *is_byte = byte >= 0;
    if (byte >= 0) return buf_append(texts, &(unsigned char){(unsigned char)byte}, 1);
    status st = STATUS_OK;
    for (const char *at = text; *at && st == STATUS_OK;) {
        bool is_space = strncmp(at, TOKENIZER_SPACE, 3) == 0;
        st = buf_append(texts, is_space ? " " : at, 1);
        at += is_space ? 3 : 1;
    }
    return st;
}

static status add_piece(loader *l, const char *text, int32_t id, bool is_special) {
    tokenizer *t = l->t;
    token_piece *piece = &t->pieces[id];
    if (piece->is_there)
        return fail(l->e, STATUS_BAD_MODEL, "%s: id %d has two texts, the second is \"%.60s\"", l->label,
                    (int)id, text);
    *piece = (token_piece){.begin = t->texts.len_bytes, .is_there = true, .is_special = is_special};
    status st = t->is_sentencepiece ? append_spaced(&t->texts, text, &piece->is_byte)
                                    : append_decoded(&t->texts, text, &piece->is_word);
    if (st != STATUS_OK) return fail(l->e, st, "%s: no room for the texts of its tokens", l->label);
    piece->n_bytes = (uint32_t)(t->texts.len_bytes - piece->begin);
    if (id >= t->n_ids) t->n_ids = id + 1;
    return STATUS_OK;
}

/* Range-checked id of a JSON value. */
static status read_id(const loader *l, const char *text, const json_t *value, int32_t *id) {
    if (json_is_integer(value) && json_integer_value(value) >= 0 &&
        json_integer_value(value) < TOKENIZER_IDS_MAX) {
        *id = (int32_t)json_integer_value(value);
        return STATUS_OK;
    }
    char found[64];
    json_describe(found, sizeof found, value);
    return fail(l->e, STATUS_BAD_MODEL, "%s: the id of \"%.60s\" is %s, expected a number from 0 to %d",
                l->label, text, found, (int)TOKENIZER_IDS_MAX - 1);
}

static int by_code_point(const void *a, const void *b) {
    uint32_t x = ((const token_character *)a)->code_point, y = ((const token_character *)b)->code_point;
    return (x > y) - (x < y);
}

/* What words of a SentencePiece tokenizer begin as: characters, or bytes where there is no character. */
static status load_characters(loader *l) {
    tokenizer *t = l->t;
    const char *text;
    json_t *value;
    t->characters = calloc(json_object_size(l->vocab) + 1, sizeof *t->characters);
    if (!t->characters) return fail(l->e, STATUS_NO_MEMORY, "%s: no memory for its characters", l->label);
    json_object_foreach((json_t *)(uintptr_t)l->vocab, text, value) {
        uint32_t c;
        size_t n, len = strlen(text);
        if (len == 0 || utf8_next((const unsigned char *)text, len, &c, &n) != UTF8_CHARACTER || n != len) continue;
        t->characters[t->n_characters++] = (token_character){c, (int32_t)json_integer_value(value)};
    }
    qsort(t->characters, t->n_characters, sizeof *t->characters, by_code_point);
    for (unsigned byte = 0; byte < 256; byte++) {
        char name[8], character[2] = {(char)byte, '\0'};
        (void)snprintf(name, sizeof name, "<0x%02X>", byte);
        t->byte_ids[byte] = id_of(l, name);
        bool has_character = byte > 0 && byte < 128 && id_of(l, character) >= 0;
        if (t->byte_ids[byte] < 0 && !has_character && byte != ' ')
            return fail(l->e, STATUS_BAD_MODEL, "%s: neither byte %u (\"%s\") nor its character is in the vocabulary",
                        l->label, byte, name);
    }
    if (id_of(l, TOKENIZER_SPACE) < 0)
        return fail(l->e, STATUS_BAD_MODEL, "%s: the space (U+2581) is not in the vocabulary", l->label);
    return STATUS_OK;
}

static status load_bytes(loader *l) {
    for (unsigned byte = 0; byte < 256; byte++) {
        char text[5] = {0};
        (void)utf8_put((unsigned char *)text, byte_map_character(byte));
        l->t->byte_ids[byte] = id_of(l, text);
        if (l->t->byte_ids[byte] < 0)
            return fail(l->e, STATUS_BAD_MODEL, "%s: byte %u (\"%s\") is not in the vocabulary", l->label,
                        byte, text);
    }
    return STATUS_OK;
}

static status load_vocabulary(loader *l) {
    const char *text;
    json_t *value;
    if (!json_is_object(l->vocab))
        return fail(l->e, STATUS_BAD_FORMAT, "%s: has no object of texts and ids (vocab)", l->label);
    json_object_foreach((json_t *)(uintptr_t)l->vocab, text, value) {
        int32_t id = 0;
        status st = read_id(l, text, value, &id);
        if (st == STATUS_OK) st = add_piece(l, text, id, false);
        if (st != STATUS_OK) return st;
    }
    return l->t->is_sentencepiece ? load_characters(l) : load_bytes(l);
}

/* --- merges ----------------------------------------------------------------------------------- */

static status open_merges(loader *l, size_t n_merges) {
    if (n_merges > (size_t)TOKENIZER_IDS_MAX)
        return fail(l->e, STATUS_TOO_LARGE, "%s: %zu merges, at most %d", l->label, n_merges,
                    (int)TOKENIZER_IDS_MAX);
    return bpe_open(&l->t->merges, n_merges, l->e);
}

/* pair has room for both texts and a zero; it is the merge's result afterwards. */
static status add_merge(loader *l, size_t rank, const char *left, const char *right, buf *pair) {
    int32_t left_id = id_of(l, left), right_id = id_of(l, right);
    buf_clear(pair);
    status st = buf_append_text(pair, left);
    if (st == STATUS_OK) st = buf_append_text(pair, right);
    if (st != STATUS_OK) return fail(l->e, st, "%s: merge %zu is too long", l->label, rank);
    int32_t merged = id_of(l, (const char *)pair->data);
    if (left_id < 0 || right_id < 0 || merged < 0)
        return fail(l->e, STATUS_BAD_MODEL, "%s: merge %zu (%.40s %.40s): %s is not in the vocabulary",
                    l->label, rank, left, right,
                    left_id < 0 ? "the left part" : right_id < 0 ? "the right part" : "the result");
    if (!bpe_add(l->t->merges, left_id, right_id, merged))
        return fail(l->e, STATUS_BAD_MODEL, "%s: merge %zu (%.40s %.40s) is there twice", l->label, rank,
                    left, right);
    return STATUS_OK;
}

/* "left right", changed in place. */
static status add_merge_line(loader *l, size_t rank, char *line, buf *pair) {
    char *space = strchr(line, ' ');
    if (!space || strchr(space + 1, ' '))
        return fail(l->e, STATUS_BAD_MODEL, "%s: merge %zu is \"%.60s\", expected two parts and one space",
                    l->label, rank, line);
    *space = '\0';
    return add_merge(l, rank, line, space + 1, pair);
}

static status load_merges(loader *l, const json_t *merges) {
    if (!json_is_array(merges))
        return fail(l->e, STATUS_BAD_FORMAT, "%s: model.merges is not an array", l->label);
    status st = open_merges(l, json_array_size(merges));
    buf pair;
    buf_init(&pair, TOKENIZER_FILE_BYTES_MAX);
    for (size_t i = 0; st == STATUS_OK && i < json_array_size(merges); i++) {
        const json_t *merge = json_array_get(merges, i);
        const char *left = json_string_value(json_array_get(merge, 0));
        const char *right = json_string_value(json_array_get(merge, 1));
        if (json_is_string(merge)) {
            char *line = strdup(json_string_value(merge));
            st = line ? add_merge_line(l, i, line, &pair)
                      : fail(l->e, STATUS_NO_MEMORY, "%s: no memory for a merge", l->label);
            free(line);
        } else if (json_array_size(merge) == 2 && left && right) {
            st = add_merge(l, i, left, right, &pair);
        } else {
            st = fail(l->e, STATUS_BAD_FORMAT, "%s: merge %zu is neither a string nor two strings",
                      l->label, i);
        }
    }
    buf_deinit(&pair);
    return st;
}

/* merges.txt: a first line "#version: ..." is skipped, every other line is "left right". */
static status load_merge_lines(loader *l, buf *text) {
    size_t n_lines = 0, rank = 0;
    for (size_t i = 0; i < text->len_bytes; i++) n_lines += text->data[i] == '\n';
    status st = open_merges(l, n_lines + 1);
    buf pair;
    buf_init(&pair, TOKENIZER_FILE_BYTES_MAX);
    char *line = text->len_bytes ? (char *)text->data : NULL;
    bool is_first = true;
    while (st == STATUS_OK && line) {
        char *end = strchr(line, '\n');
        if (end) *end = '\0';
        size_t len = strlen(line);
        if (len > 0 && line[len - 1] == '\r') line[len - 1] = '\0';
        if (*line && !(is_first && strncmp(line, "#version", 8) == 0))
            st = add_merge_line(l, rank++, line, &pair);
        is_first = false;
        line = end ? end + 1 : NULL;
    }
    buf_deinit(&pair);
    return st;
}

/* --- added tokens ----------------------------------------------------------------------------- */

static status add_token(loader *l, const added_token *token) {
    if (!*token->content) return STATUS_OK; /* Hugging Face passes over empty ones, too */
    int32_t known = id_of(l, token->content);
    if (known >= 0 && known != token->id)
        return fail(l->e, STATUS_BAD_MODEL,
                    "%s: added token \"%.60s\" has id %d, but the vocabulary gives it %d", l->label,
                    token->content, (int)token->id, (int)known);
    status st = known >= 0 ? STATUS_OK : add_piece(l, token->content, token->id, false);
    if (st != STATUS_OK) return st;
    l->t->pieces[token->id].is_special = token->is_special;
    if (!token->is_normalized || !l->t->is_sentencepiece) return added_tokens_add(l->t->added, token, l->e);
    /* What is looked for in a normalized text is itself normalized, by Hugging Face, the prefix included. */
    buf normal;
    buf_init(&normal, 4 * ADDED_TOKEN_BYTES_MAX);
    added_token as_found = *token;
    st = tokenizer_normalize(l->t, &normal, (bytes){(const unsigned char *)token->content, strlen(token->content)}, true);
    as_found.content = (char *)normal.data;
    if (st == STATUS_OK) st = added_tokens_add(l->t->added, &as_found, l->e);
    buf_deinit(&normal);
    return st;
}

/* {id, content, single_word, lstrip, rstrip, normalized, special}; the defaults are those of the tokenizers
 * library, where special tokens are not normalized. */
static status load_added(loader *l, const json_t *entry, const json_t *id_value) {
    char where[160];
    const char *content = json_string_value(json_object_get(entry, "content"));
    if (!content)
        return fail(l->e, STATUS_BAD_FORMAT, "%s: an added token has no content", l->label);
    (void)snprintf(where, sizeof where, "%.100s: added token %.40s", l->label, content);
    json_view v = json_view_make(entry, where, l->e);
    added_token token = {.content = (char *)(uintptr_t)content};
    token.is_special = json_view_bool(&v, "special", false);
    token.is_normalized = json_view_bool(&v, "normalized", !token.is_special);
    token.is_single_word = json_view_bool(&v, "single_word", false);
    token.strips_left = json_view_bool(&v, "lstrip", false);
    token.strips_right = json_view_bool(&v, "rstrip", false);
    if (v.st != STATUS_OK) return v.st;
    status st = read_id(l, content, id_value, &token.id);
    return st == STATUS_OK ? add_token(l, &token) : st;
}

static status load_added_array(loader *l, const json_t *list) {
    if (list && !json_is_null(list) && !json_is_array(list))
        return fail(l->e, STATUS_BAD_FORMAT, "%s: added_tokens is not an array", l->label);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        status st = load_added(l, entry, json_object_get(entry, "id"));
        if (st != STATUS_OK) return st;
    }
    return STATUS_OK;
}

/* --- tokenizer_config.json ---------------------------------------------------------------------- */

/* eos_token is a string or an object with content. */
static status load_eos(loader *l, const json_t *config) {
    const json_t *eos = json_object_get(config, "eos_token");
    const char *text = json_is_object(eos) ? json_string_value(json_object_get(eos, "content"))
                                           : json_string_value(eos);
    if (!text) text = DEFAULT_EOS;
    const added_token *token = added_tokens_find(l->t->added, text);
    int32_t id = token ? token->id : id_of(l, text);
    if (id < 0)
        return fail(l->e, STATUS_BAD_MODEL, "%s: the end token \"%.60s\" is not in the vocabulary",
                    l->label, text);
    l->t->eos_id = id;
    l->t->eos_text = strdup(text);
    if (!l->t->eos_text) return fail(l->e, STATUS_NO_MEMORY, "no memory for the end token");
    if (token) return STATUS_OK;
    added_token special = {.content = (char *)(uintptr_t)text, .id = id, .is_special = true};
    return add_token(l, &special);
}

static status load_settings(loader *l, const json_t *config) {
    json_view v = json_view_make(config, "tokenizer_config.json", l->e);
    /* Absent means true in the transformers version the published checkpoints were made with (4.38). */
    l->t->cleans_up = json_view_bool(&v, "clean_up_tokenization_spaces", !l->t->is_sentencepiece);
    /* What is really put in front is in tokenizer.json; the GPT-2 kind has no place for it there. */
    if (!l->t->is_sentencepiece && json_view_bool(&v, "add_bos_token", false))
        json_view_refuse(&v, "add_bos_token", "false");
    if (json_view_bool(&v, "add_eos_token", false)) json_view_refuse(&v, "add_eos_token", "false");
    return v.st == STATUS_OK ? load_eos(l, config) : v.st;
}

/* --- the two sets of files ---------------------------------------------------------------------- */

static status check_model(loader *l, const json_t *root) {
    json_view v = json_view_make(root, l->label, l->e);
    json_view m = json_view_child(&v, "model");
    if (strcmp(json_view_text(&m, "type", "BPE"), "BPE") != 0)
        json_view_refuse(&m, "type", "\"BPE\"");
    (void)json_view_real(&m, "dropout", 0.0, 0.0, 0.0);
    if (json_view_bool(&m, "byte_fallback", false) != l->t->is_sentencepiece)
        json_view_refuse(&m, "byte_fallback", l->t->is_sentencepiece ? "true, as the decoder has it"
                                                                     : "false, as the decoder has it");
    if (*json_view_text(&m, "continuing_subword_prefix", ""))
        json_view_refuse(&m, "continuing_subword_prefix", "null");
    if (*json_view_text(&m, "end_of_word_suffix", ""))
        json_view_refuse(&m, "end_of_word_suffix", "null");
    l->t->ignores_merges = json_view_bool(&m, "ignore_merges", false);
    return m.st;
}

static status load_new(loader *l, const json_t *root) {
    const json_t *model = json_object_get(root, "model");
    l->vocab = json_object_get(model, "vocab");
    status st = tokenizer_load_pipeline(l->t, root, l->label, l->e);
    if (st == STATUS_OK) st = check_model(l, root);
    if (st == STATUS_OK) st = load_vocabulary(l);
    if (st == STATUS_OK) st = load_merges(l, json_object_get(model, "merges"));
    if (st == STATUS_OK) st = load_added_array(l, json_object_get(root, "added_tokens"));
    return st;
}

/* Flags of added tokens are in tokenizer_config.json when a newer version saved the folder; added_tokens.json
 * has ids only and its tokens are ordinary ones. */
static status load_old_added(loader *l, const char *dir, const json_t *config) {
    const json_t *with_flags = json_object_get(config, "added_tokens_decoder");
    const char *key;
    json_t *value;
    status st = STATUS_OK;
    json_object_foreach((json_t *)(uintptr_t)with_flags, key, value) {
        char *end;
        long id = strtol(key, &end, 10);
        json_t *id_value = json_integer(*end || id < 0 || id > INT_MAX ? -1 : id);
        st = load_added(l, value, id_value);
        json_decref(id_value);
        if (st != STATUS_OK) return st;
    }
    char path[PATH_BYTES];
    (void)snprintf(path, sizeof path, "%s/added_tokens.json", dir);
    if (with_flags || access(path, F_OK) != 0) return STATUS_OK;
    json_t *plain;
    st = json_file_load(&plain, path, FILE_LIMITS, l->e);
    json_object_foreach(plain, key, value) {
        added_token token = {.content = (char *)(uintptr_t)key, .is_normalized = true};
        if (st == STATUS_OK) st = read_id(l, key, value, &token.id);
        token.is_special = strcmp(key, DEFAULT_EOS) == 0;
        if (token.is_special) token.is_normalized = false;
        if (st == STATUS_OK) st = add_token(l, &token);
    }
    json_decref(plain);
    return st;
}

static status load_old(loader *l, const char *dir, json_t *vocab, const json_t *config) {
    char path[PATH_BYTES];
    buf lines;
    (void)snprintf(path, sizeof path, "%s/merges.txt", dir);
    status st = file_load(&lines, path, TOKENIZER_FILE_BYTES_MAX, l->e);
    if (st != STATUS_OK) return st;
    l->vocab = vocab;
    l->t->splits_words = true;
    json_view v = json_view_make(config, "tokenizer_config.json", l->e);
    l->t->adds_prefix_space = json_view_bool(&v, "add_prefix_space", false);
    st = v.st;
    if (st == STATUS_OK) st = load_vocabulary(l);
    if (st == STATUS_OK) st = load_merge_lines(l, &lines);
    if (st == STATUS_OK) st = load_old_added(l, dir, config);
    buf_deinit(&lines);
    return st;
}

status tokenizer_load(tokenizer *t, const char *dir, err *e) {
    status st = STATUS_OK;
    char path[PATH_BYTES];
    json_t *root = NULL, *config = NULL;
    loader l = {.t = t, .label = "tokenizer.json", .e = e};
    t->pieces = calloc((size_t)TOKENIZER_IDS_MAX, sizeof *t->pieces);
    if (!t->pieces) return fail(e, STATUS_NO_MEMORY, "%s: no memory for a tokenizer", dir);
    buf_init(&t->texts, TEXTS_BYTES_MAX);
    t->bos_id = -1;
    st = added_tokens_open(&t->added, e);
    if (st != STATUS_OK) goto done;

    (void)snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    if (access(path, F_OK) == 0) st = json_file_load(&config, path, JSON_FILE_CONFIG_LIMITS, e);
    if (st != STATUS_OK) goto done;
    (void)snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    bool is_new = access(path, F_OK) == 0;
    if (!is_new) {
        (void)snprintf(path, sizeof path, "%s/vocab.json", dir);
        l.label = "vocab.json and merges.txt";
        if (access(path, F_OK) != 0) {
            st = fail(e, STATUS_IO, "%s: holds neither tokenizer.json nor vocab.json", dir);
            goto done;
        }
    }
    st = json_file_load(&root, path, FILE_LIMITS, e);
    if (st != STATUS_OK) goto done;
    st = is_new ? load_new(&l, root) : load_old(&l, dir, root, config);
    if (st == STATUS_OK) st = load_settings(&l, config);
    if (st == STATUS_OK) st = added_tokens_finish(t->added, l.label, e);
done:
    json_decref(root);
    json_decref(config);
    return st;
}
