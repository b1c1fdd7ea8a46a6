/* Three tokenizers against Hugging Face: 12,000 strings and 3,000 sequences of ids each, made by
 * tools/make_golden_tokenizer.py, and what it does with files that are nearly right. */
#include "tests/support/support.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "model/tokenizer.h"

#define DATA      TEST_DATA_DIR "/tokenizer"
#define IDS_MAX   512
#define STRINGS_MAX 12000
#define KINDS     6

enum { ENCODE, ENCODE_PLAIN, DECODE_ALL, DECODE, DECODE_TIDY, ENCODE_SHARED };

typedef struct {
    int kind;
    const char *text;
    size_t text_bytes, n_ids;
    int32_t ids[IDS_MAX];
} golden_row;

typedef struct {
    char *dir, *tidy_dir; /* without and with the clean-up of spaces */
    buf rows;
    buf shared;           /* rows of the first tokenizer, whose strings the others encode too */
    const char *texts[STRINGS_MAX];
    size_t text_bytes[STRINGS_MAX];
    tokenizer *t, *tidy;
} world;

static tokenizer *open_tokenizer(const char *dir) {
    tokenizer *t;
    err e;
    if (tokenizer_open(&t, dir, &e) != STATUS_OK) fail_msg("%s", e.text);
    return t;
}

static void write_text(const char *dir, const char *name, const char *text) {
    char *path = path_join(dir, name);
    file_write(path, text, strlen(text));
    free(path);
}

static bool next_row(const world *w, const buf *rows, size_t *at, golden_row *row);

static world *open_world(const char *folder) {
    world *w = calloc(1, sizeof *w);
    w->dir = temp_dir_make();
    w->tidy_dir = temp_dir_make();
    buf json;
    buf_init(&json, 16 << 20);
    buf_init(&w->rows, 64 << 20);
    char *from[2] = {path_join(folder, "tokenizer.json"), path_join(folder, "golden.bin")};
    assert_true(file_read(&json, from[0]));
    assert_true(file_read(&w->rows, from[1]));
    free(from[0]), free(from[1]);
    char *paths[2] = {path_join(w->dir, "tokenizer.json"), path_join(w->tidy_dir, "tokenizer.json")};
    for (int i = 0; i < 2; i++) {
        file_write(paths[i], json.data, json.len_bytes);
        free(paths[i]);
    }
    buf_deinit(&json);
    bool is_gemma = strstr(folder, "gemma") != NULL;
    write_text(w->dir, "tokenizer_config.json", is_gemma ? "{\"eos_token\": \"<eos>\"}"
                                                         : "{\"clean_up_tokenization_spaces\": false}");
    /* It is on unless it is switched off. */
    write_text(w->tidy_dir, "tokenizer_config.json", is_gemma ? "{\"eos_token\": \"<eos>\"}" : "{}");
    w->t = open_tokenizer(w->dir);
    w->tidy = open_tokenizer(w->tidy_dir);
    return w;
}

static int set_up(void **state) {
    *state = open_world(DATA);
    return 0;
}

/* A SentencePiece tokenizer, with the strings of the first. */
static int set_up_other(void **state, const char *folder) {
    world *w = open_world(folder);
    golden_row row;
    size_t n = 0;
    buf_init(&w->shared, 64 << 20);
    assert_true(file_read(&w->shared, DATA "/golden.bin"));
    for (size_t at = 0; next_row(w, &w->shared, &at, &row);) {
        if (row.kind != ENCODE) continue;
        assert_true(n < STRINGS_MAX);
        w->texts[n] = row.text;
        w->text_bytes[n++] = row.text_bytes;
    }
    *state = w;
    return 0;
}

static int set_up_gemma(void **state) { return set_up_other(state, TEST_DATA_DIR "/tokenizer_gemma"); }
static int set_up_llama(void **state) { return set_up_other(state, TEST_DATA_DIR "/tokenizer_llama"); }

static int tear_down(void **state) {
    world *w = *state;
    tokenizer_close(&w->t);
    tokenizer_close(&w->tidy);
    buf_deinit(&w->rows);
    buf_deinit(&w->shared);
    temp_dir_remove(w->dir);
    temp_dir_remove(w->tidy_dir);
    free(w);
    return 0;
}

/* The row at *at, which moves on; false behind the last one. */
static bool next_row(const world *w, const buf *rows, size_t *at, golden_row *row) {
    const unsigned char *p = rows->data + *at;
    if (*at == rows->len_bytes) return false;
    row->kind = p[0];
    row->text_bytes = bytes_load_le(p + 1, 4);
    row->n_ids = bytes_load_le(p + 5, 2);
    row->text = (const char *)p + 7;
    assert_true(row->n_ids <= IDS_MAX && row->kind < KINDS);
    const unsigned char *ids = p + 7;
    if (row->kind == ENCODE_SHARED) {
        size_t number = row->text_bytes;
        assert_true(number < STRINGS_MAX);
        row->text = w->texts[number];
        row->text_bytes = w->text_bytes[number];
    } else {
        ids += row->text_bytes;
    }
    for (size_t i = 0; i < row->n_ids; i++) row->ids[i] = (int32_t)bytes_load_le(ids + 2 * i, 2);
    *at = (size_t)(ids + 2 * row->n_ids - rows->data);
    assert_true(*at <= rows->len_bytes);
    return true;
}

static void explain(const golden_row *row, const int32_t *ids, size_t n_ids, const char *text, size_t n) {
    print_error("kind %d, text \"%.*s\"\n  expected", row->kind, (int)row->text_bytes, row->text);
    for (size_t i = 0; i < row->n_ids; i++) print_error(" %d", row->ids[i]);
    print_error("\n  got");
    for (size_t i = 0; i < n_ids; i++) print_error(" %d", ids[i]);
    print_error(" \"%.*s\"\n", (int)n, text);
    fail_msg("not what Hugging Face gives");
}

static void encodes_what_hugging_face_encodes(void **state) {
    const world *w = *state;
    size_t n_rows[KINDS] = {0};
    golden_row row;
    for (size_t at = 0; next_row(w, &w->rows, &at, &row); n_rows[row.kind]++) {
        if (row.kind > ENCODE_PLAIN && row.kind != ENCODE_SHARED) continue;
        int32_t ids[IDS_MAX];
        size_t n_ids;
        err e;
        tokenizer_mode mode = row.kind == ENCODE_PLAIN ? TOKENIZER_PLAIN : TOKENIZER_WITH_ADDED;
        if (tokenizer_encode(w->t, row.text, row.text_bytes, mode, ids, IDS_MAX, &n_ids, &e) != STATUS_OK)
            fail_msg("\"%.*s\": %s", (int)row.text_bytes, row.text, e.text);
        if (n_ids != row.n_ids || memcmp(ids, row.ids, n_ids * sizeof *ids) != 0)
            explain(&row, ids, n_ids, "", 0);
    }
    assert_true(n_rows[ENCODE] + n_rows[ENCODE_SHARED] >= 12000 && n_rows[ENCODE_PLAIN] >= 100);
}

static void decodes_what_hugging_face_decodes(void **state) {
    const world *w = *state;
    size_t n_rows[KINDS] = {0};
    golden_row row;
    buf text;
    buf_init(&text, 1 << 20);
    for (size_t at = 0; next_row(w, &w->rows, &at, &row); n_rows[row.kind]++) {
        if (row.kind < DECODE_ALL || row.kind == ENCODE_SHARED) continue;
        buf_clear(&text);
        assert_int_equal(tokenizer_decode(row.kind == DECODE_TIDY ? w->tidy : w->t, row.ids, row.n_ids,
                                          row.kind != DECODE_ALL, &text),
                         STATUS_OK);
        if (text.len_bytes != row.text_bytes || memcmp(text.data, row.text, text.len_bytes) != 0)
            explain(&row, NULL, 0, (const char *)text.data, text.len_bytes);
    }
    buf_deinit(&text);
    assert_true(n_rows[DECODE_ALL] >= 3000 && n_rows[DECODE] >= 3000);
    assert_true(n_rows[DECODE_TIDY] >= 3000 || w->shared.len_bytes > 0);
}

static void pieces_of_a_stream_are_whole_characters_and_add_up_to_the_text(void **state) {
    const world *w = *state;
    golden_row row;
    buf text;
    buf_init(&text, 1 << 20);
    size_t n_held = 0;
    for (size_t at = 0; next_row(w, &w->rows, &at, &row);) {
        if (row.kind != DECODE && row.kind != DECODE_TIDY) continue;
        tokenizer_stream *s;
        assert_int_equal(tokenizer_stream_open(&s, row.kind == DECODE_TIDY ? w->tidy : w->t), STATUS_OK);
        buf_clear(&text);
        for (size_t i = 0; i < row.n_ids; i++) {
            size_t before = text.len_bytes;
            assert_int_equal(tokenizer_stream_push(s, row.ids[i], &text), STATUS_OK);
            n_held += text.len_bytes == before;
            /* What was given out is final: it is how the whole text starts. */
            assert_true(text.len_bytes <= row.text_bytes);
            if (text.len_bytes) assert_memory_equal(text.data, row.text, text.len_bytes);
            bool cuts = text.len_bytes < row.text_bytes && (row.text[text.len_bytes] & 0xC0) == 0x80;
            assert_false(cuts);
        }
        assert_int_equal(tokenizer_stream_flush(s, &text), STATUS_OK);
        if (text.len_bytes != row.text_bytes || memcmp(text.data, row.text, text.len_bytes) != 0)
            explain(&row, NULL, 0, (const char *)text.data, text.len_bytes);
        tokenizer_stream_close(&s);
    }
    buf_deinit(&text);
    assert_true(n_held > 500); /* or nothing ever ended inside a character */
}

static void text_that_is_not_utf8_or_too_long_is_refused(void **state) {
    const world *w = *state;
    int32_t ids[4];
    size_t n_ids;
    err e;
    static const char *const bad[] = {"\xff", "a\x80", "\xc3", "\xe2\x82", "\xed\xa0\x80", "\xc0\x80",
                                      "\xf4\x90\x80\x80"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(tokenizer_encode(w->t, bad[i], strlen(bad[i]), TOKENIZER_PLAIN, ids, 4, &n_ids, &e),
                         STATUS_BAD_FORMAT);
    assert_int_equal(tokenizer_encode(w->t, "1!2?3.", 6, TOKENIZER_PLAIN, ids, 4, &n_ids, &e),
                     STATUS_TOO_LARGE);
}

static void ids_without_a_text_are_left_out(void **state) {
    const world *w = *state;
    int32_t ids[] = {-1, INT32_MAX, tokenizer_n_ids(w->t), -200};
    buf text;
    buf_init(&text, 64);
    assert_int_equal(tokenizer_decode(w->t, ids, 4, true, &text), STATUS_OK);
    assert_int_equal(text.len_bytes, 0);
    buf_deinit(&text);
}

/* ---- files --------------------------------------------------------------------------------------- */

static void refuses(const char *json, const char *why) {
    char *dir = temp_dir_make();
    write_text(dir, "tokenizer.json", json);
    tokenizer *t;
    err e = {0};
    status st = tokenizer_open(&t, dir, &e);
    if (st == STATUS_OK) fail_msg("taken: %s", json);
    if (!strstr(e.text, why)) fail_msg("\"%s\" does not say \"%s\" about %.400s", e.text, why, json);
    assert_null(t);
    temp_dir_remove(dir);
}

#define MODEL(vocab, merges) \
    "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}," \
    "\"decoder\":{\"type\":\"ByteLevel\"}," \
    "\"model\":{\"type\":\"BPE\",\"vocab\":" vocab ",\"merges\":" merges "},\"added_tokens\":[]}"

static void a_tokenizer_json_that_is_nearly_right_is_refused_by_name(void **state) {
    (void)state;
    refuses("", "tokenizer.json");
    refuses("[]", "tokenizer.json");
    refuses("{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},"
            "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"Unigram\"}}",
            "Unigram");
    refuses(MODEL("{\"a\":0,\"b\":0}", "[]"), "id 0");
    refuses(MODEL("{\"a\":-1}", "[]"), "a");
    refuses(MODEL("{\"a\":2147483647}", "[]"), "2147483647");
    refuses(MODEL("{\"a\":0.5}", "[]"), "a");
}

/* The real file with one merge put in front of the others. */
static void refuses_merge(const char *merge, const char *why) {
    json_t *whole = json_load_file(DATA "/tokenizer.json", 0, NULL);
    json_t *merges = json_object_get(json_object_get(whole, "model"), "merges");
    assert_int_equal(json_array_insert_new(merges, 0, json_loads(merge, JSON_DECODE_ANY, NULL)), 0);
    char *text = json_dumps(whole, 0);
    refuses(text, why);
    free(text);
    json_decref(whole);
}

static void a_merge_that_makes_no_sense_is_refused(void **state) {
    (void)state;
    refuses_merge("[\"a\", \"zzzq\"]", "zzzq");
    refuses_merge("[\"q\", \"q\"]", "(q q): the result is not in the vocabulary");
    refuses_merge("\"ab\"", "merge");
    refuses_merge("[\"a\"]", "merge");
    refuses_merge("7", "merge");
}

/* The same tokenizer as vocab.json, merges.txt and added_tokens.json. */
static void write_as_three_files(const char *from, const char *to) {
    char *paths[] = {path_join(from, "tokenizer.json"), path_join(to, "vocab.json"),
                     path_join(to, "merges.txt"), path_join(to, "added_tokens.json")};
    json_t *whole = json_load_file(paths[0], 0, NULL), *added = json_object(), *row;
    json_t *bpe = json_object_get(whole, "model");
    assert_int_equal(json_dump_file(json_object_get(bpe, "vocab"), paths[1], 0), 0);
    FILE *f = fopen(paths[2], "w");
    assert_non_null(f);
    (void)fprintf(f, "#version: 0.2\n");
    size_t i;
    json_array_foreach(json_object_get(bpe, "merges"), i, row)
        (void)fprintf(f, "%s %s\n", json_string_value(json_array_get(row, 0)),
                      json_string_value(json_array_get(row, 1)));
    (void)fclose(f);
    json_array_foreach(json_object_get(whole, "added_tokens"), i, row)
        json_object_set(added, json_string_value(json_object_get(row, "content")),
                        json_object_get(row, "id"));
    assert_int_equal(json_dump_file(added, paths[3], 0), 0);
    json_decref(added);
    json_decref(whole);
    for (i = 0; i < 4; i++) free(paths[i]);
}

static bool has_special(const golden_row *row) {
    for (size_t i = 0; i + 1 < row->text_bytes; i++)
        if (row->text[i] == '<' && row->text[i + 1] == '|') return true;
    return false;
}

static void vocab_and_merges_files_give_the_same_tokenizer(void **state) {
    const world *w = *state;
    char *dir = temp_dir_make();
    write_as_three_files(w->dir, dir);
    tokenizer *t = open_tokenizer(dir);
    golden_row row;
    size_t n = 0;
    for (size_t at = 0; n < 2000 && next_row(w, &w->rows, &at, &row);) {
        if (row.kind != ENCODE || has_special(&row)) continue;
        int32_t ids[IDS_MAX];
        size_t n_ids;
        err e;
        assert_int_equal(tokenizer_encode(t, row.text, row.text_bytes, TOKENIZER_WITH_ADDED, ids, IDS_MAX,
                                          &n_ids, &e),
                         STATUS_OK);
        if (n_ids != row.n_ids || memcmp(ids, row.ids, n_ids * sizeof *ids) != 0)
            explain(&row, ids, n_ids, "", 0);
        n++;
    }
    tokenizer_close(&t);
    temp_dir_remove(dir);
}

static void what_stands_in_front_of_a_text_is_known(void **state) {
    const world *w = *state;
    assert_int_equal(tokenizer_bos_id(w->t), strstr(tokenizer_eos_text(w->t), "<eos>") ? 2 : -1);
}

static void refuses_part(const char *key, const char *value, const char *why) {
    json_t *whole = json_load_file(TEST_DATA_DIR "/tokenizer_llama/tokenizer.json", 0, NULL);
    json_t *part = json_loads(value, JSON_DECODE_ANY, NULL);
    assert_non_null(part);
    json_t *at = whole;
    char name[64];
    (void)snprintf(name, sizeof name, "%s", key);
    char *dot = strchr(name, '.');
    if (dot) {
        *dot = '\0';
        at = json_object_get(whole, name);
    }
    json_object_set_new(at, dot ? dot + 1 : name, part);
    char *text = json_dumps(whole, JSON_COMPACT);
    refuses(text, why);
    free(text);
    json_decref(whole);
}

#define REPLACE(from, to) "{\"type\":\"Replace\",\"pattern\":{\"String\":\"" from "\"},\"content\":\"" to "\"}"

static void a_sentencepiece_tokenizer_that_is_nearly_right_is_refused_by_name(void **state) {
    (void)state;
    refuses_part("normalizer", "{\"type\":\"NFKC\"}", "normalizer is of type NFKC");
    refuses_part("normalizer", REPLACE(" ", "_"), "normalizer is of type Replace");
    refuses_part("normalizer", "{\"type\":\"Sequence\",\"normalizers\":[" REPLACE(" ", "\xE2\x96\x81") "," REPLACE("a", "b") "]}",
                 "normalizer is of type Sequence");
    refuses_part("normalizer", "null", "pre_tokenizer is nothing");
    refuses_part("pre_tokenizer", "{\"type\":\"Whitespace\"}", "pre_tokenizer is of type Whitespace");
    refuses_part("post_processor", "{\"type\":\"BertProcessing\"}", "post_processor is of type BertProcessing");
    refuses_part("decoder", "{\"type\":\"WordPiece\"}", "decoder is of type WordPiece");
    refuses_part("decoder.decoders", "[" REPLACE("\xE2\x96\x81", " ") "]", "decoder is of type Sequence");
    refuses_part("model.byte_fallback", "false", "byte_fallback is false, expected true");
    refuses_part("model.vocab", "{\"<unk>\":0}", "neither byte 0");
    refuses_part("model.type", "\"WordLevel\"", "WordLevel");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(encodes_what_hugging_face_encodes),
        cmocka_unit_test(decodes_what_hugging_face_decodes),
        cmocka_unit_test(pieces_of_a_stream_are_whole_characters_and_add_up_to_the_text),
        cmocka_unit_test(text_that_is_not_utf8_or_too_long_is_refused),
        cmocka_unit_test(ids_without_a_text_are_left_out),
        cmocka_unit_test(a_tokenizer_json_that_is_nearly_right_is_refused_by_name),
        cmocka_unit_test(a_merge_that_makes_no_sense_is_refused),
        cmocka_unit_test(vocab_and_merges_files_give_the_same_tokenizer),
    };
    const struct CMUnitTest sentencepiece[] = {
        cmocka_unit_test(encodes_what_hugging_face_encodes),
        cmocka_unit_test(decodes_what_hugging_face_decodes),
        cmocka_unit_test(pieces_of_a_stream_are_whole_characters_and_add_up_to_the_text),
        cmocka_unit_test(what_stands_in_front_of_a_text_is_known),
        cmocka_unit_test(a_sentencepiece_tokenizer_that_is_nearly_right_is_refused_by_name),
    };
    int n_failed = cmocka_run_group_tests_name("bytes", tests, set_up, tear_down);
    n_failed += cmocka_run_group_tests_name("gemma", sentencepiece, set_up_gemma, tear_down);
    return n_failed + cmocka_run_group_tests_name("llama", sentencepiece, set_up_llama, tear_down);
}
