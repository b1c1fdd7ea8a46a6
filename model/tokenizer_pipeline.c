/* Every part has few accepted forms, listed where they are read. Any other would give other ids or texts. */
#include <string.h>

#include "model/tokenizer_internal.h"

static const char *type_of(const json_t *part) { return json_string_value(json_object_get(part, "type")); }

static bool is_type(const json_t *part, const char *type) {
    const char *found = type_of(part);
    return found && strcmp(found, type) == 0;
}

static bool is_text(const json_t *object, const char *key, const char *text) {
    const char *found = json_string_value(json_object_get(object, key));
    return found && strcmp(found, text) == 0;
}

static void refuse_part(json_view *v, const char *key, const char *expected) {
    const char *type = type_of(json_object_get(v->object, key));
    if (v->st == STATUS_OK && type)
        v->st = fail(v->e, STATUS_BAD_MODEL, "%s: %s is of type %.40s, expected %s", v->where, key, type, expected);
    else
        json_view_refuse(v, key, expected);
}

/* Part i of a Sequence that lists its parts under key; a part alone is a sequence of one. */
static const json_t *part_at(const json_t *part, const char *key, size_t i) {
    if (is_type(part, "Sequence")) return json_array_get(json_object_get(part, key), i);
    return i == 0 && json_is_object(part) ? part : NULL;
}

static bool replaces(const json_t *part, const char *from, const char *to) {
    return is_type(part, "Replace") && is_text(json_object_get(part, "pattern"), "String", from) &&
           is_text(part, "content", to);
}

/* [Prepend U+2581,] Replace " " by U+2581 */
static bool read_normalizer(tokenizer *t, const json_t *part) {
    size_t i = 0;
    const json_t *first = part_at(part, "normalizers", 0);
    if (is_type(first, "Prepend")) {
        if (!is_text(first, "prepend", TOKENIZER_SPACE)) return false;
        t->prefix = TOKENIZER_PREFIX_EACH_PIECE;
        i = 1;
    }
    return replaces(part_at(part, "normalizers", i), " ", TOKENIZER_SPACE) && !part_at(part, "normalizers", i + 1);
}

/* null; Split at spaces, of which the normalizer leaves none; or Metaspace in the normalizer's place */
static bool read_metaspace(tokenizer *t, const json_t *part, bool is_normalized) {
    const json_t *pattern = json_object_get(part, "pattern");
    if (is_normalized) return !json_is_object(part) || (is_type(part, "Split") && is_text(pattern, "String", " "));
    if (!is_type(part, "Metaspace") || !is_text(part, "replacement", TOKENIZER_SPACE)) return false;
    if (!json_is_false(json_object_get(part, "split"))) return false;
    if (is_text(part, "prepend_scheme", "always")) t->prefix = TOKENIZER_PREFIX_EACH_PIECE;
    else if (is_text(part, "prepend_scheme", "first")) t->prefix = TOKENIZER_PREFIX_FIRST_PIECE;
    else if (!is_text(part, "prepend_scheme", "never")) return false;
    return true;
}

/* Replace U+2581 by " ", ByteFallback, Fuse [, Strip one " " in front] */
static bool read_decoder(tokenizer *t, const json_t *part) {
    if (!replaces(part_at(part, "decoders", 0), TOKENIZER_SPACE, " ") ||
        !is_type(part_at(part, "decoders", 1), "ByteFallback") || !is_type(part_at(part, "decoders", 2), "Fuse"))
        return false;
    const json_t *strip = part_at(part, "decoders", 3);
    if (!strip) return true;
    t->strips_space = true;
    return is_type(strip, "Strip") && is_text(strip, "content", " ") &&
           json_integer_value(json_object_get(strip, "start")) == 1 &&
           json_integer_value(json_object_get(strip, "stop")) == 0 && !part_at(part, "decoders", 4);
}

/* null, ByteLevel, or a template of at most one token and the text behind it */
static bool read_template(tokenizer *t, const json_t *part) {
    if (!json_is_object(part) || is_type(part, "ByteLevel")) return true;
    if (!is_type(part, "TemplateProcessing")) return false;
    const json_t *single = json_object_get(part, "single");
    size_t n = json_array_size(single);
    if (n < 1 || n > 2 || !json_object_get(json_array_get(single, n - 1), "Sequence")) return false;
    if (n == 1) return true;
    const char *name = json_string_value(json_object_get(json_object_get(json_array_get(single, 0), "SpecialToken"), "id"));
    const json_t *ids = name ? json_object_get(json_object_get(json_object_get(part, "special_tokens"), name), "ids") : NULL;
    const json_t *id = json_array_get(ids, 0);
    if (json_array_size(ids) != 1 || !json_is_integer(id) || json_integer_value(id) < 0 ||
        json_integer_value(id) >= TOKENIZER_IDS_MAX)
        return false;
    t->bos_id = (int32_t)json_integer_value(id);
    return true;
}

static void load_byte_level(tokenizer *t, json_view *v) {
    if (json_view_has(v, "normalizer")) refuse_part(v, "normalizer", "null beside a ByteLevel decoder");
    if (!is_type(json_object_get(v->object, "pre_tokenizer"), "ByteLevel"))
        refuse_part(v, "pre_tokenizer", "type ByteLevel as the decoder is");
    json_view pre = json_view_child(v, "pre_tokenizer");
    t->adds_prefix_space = json_view_bool(&pre, "add_prefix_space", true);
    t->splits_words = json_view_bool(&pre, "use_regex", true);
    if (pre.st != STATUS_OK) v->st = pre.st;
}

static void load_sentencepiece(tokenizer *t, json_view *v) {
    const json_t *normalizer = json_object_get(v->object, "normalizer");
    bool is_normalized = json_is_object(normalizer);
    t->is_sentencepiece = true;
    if (is_normalized && !read_normalizer(t, normalizer))
        refuse_part(v, "normalizer", "an optional Prepend and a Replace of \" \" by U+2581");
    if (!read_metaspace(t, json_object_get(v->object, "pre_tokenizer"), is_normalized))
        refuse_part(v, "pre_tokenizer", "null behind a normalizer, or else Metaspace of U+2581 that does not split");
    if (!read_decoder(t, json_object_get(v->object, "decoder")))
        refuse_part(v, "decoder", "Replace of U+2581 by \" \", ByteFallback, Fuse, and at most Strip of one \" \"");
}

status tokenizer_load_pipeline(tokenizer *t, const json_t *root, const char *label, err *e) {
    json_view v = json_view_make(root, label, e);
    const json_t *decoder = json_object_get(root, "decoder");
    if (json_view_has(&v, "truncation")) refuse_part(&v, "truncation", "null");
    if (json_view_has(&v, "padding")) refuse_part(&v, "padding", "null");
    if (is_type(decoder, "ByteLevel"))
        load_byte_level(t, &v);
    else if (is_type(decoder, "Sequence"))
        load_sentencepiece(t, &v);
    else
        refuse_part(&v, "decoder", "type ByteLevel, or Sequence as SentencePiece's have it");
    if (!read_template(t, json_object_get(root, "post_processor")))
        refuse_part(&v, "post_processor", "null, ByteLevel, or a template of one token and the text");
    return v.st;
}
