/* The form of a key and what it depends on. */
#include "cache/cache_key.h"

#include <stdio.h>
#include <string.h>

#include "tests/support/support.h"

static unsigned char tower[HASH_SHA256_BYTES], source[HASH_SHA256_BYTES];

static void fill(void) {
    for (int i = 0; i < HASH_SHA256_BYTES; i++) {
        tower[i] = (unsigned char)(0x11 * (i % 16));
        source[i] = (unsigned char)i;
    }
}

static void a_key_has_the_form_its_header_draws(void **state) {
    (void)state;
    cache_key key;
    fill();
    cache_key_make(&key, tower, (cache_preprocess){1, true}, source);
    assert_string_equal(key.text, "mc:1:00112233445566778899aabbccddeeff:0001e:"
                                  "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f");
    cache_key_make(&key, tower, (cache_preprocess){0xffff, false}, source);
    assert_int_equal(strlen(key.text), CACHE_KEY_CHARS);
    assert_non_null(strstr(key.text, ":ffffn:"));
}

static void whatever_changes_the_features_changes_the_key(void **state) {
    (void)state;
    cache_key keys[5];
    fill();
    cache_key_make(&keys[0], tower, (cache_preprocess){1, true}, source);
    cache_key_make(&keys[1], tower, (cache_preprocess){1, false}, source);
    cache_key_make(&keys[2], tower, (cache_preprocess){2, true}, source);
    source[31] ^= 1;
    cache_key_make(&keys[3], tower, (cache_preprocess){1, true}, source);
    source[31] ^= 1;
    tower[15] ^= 1;
    cache_key_make(&keys[4], tower, (cache_preprocess){1, true}, source);
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < i; k++) assert_string_not_equal(keys[i].text, keys[k].text);
}

static void only_well_formed_keys_are_taken_from_outside(void **state) {
    (void)state;
    cache_key key, parsed;
    fill();
    cache_key_make(&key, tower, (cache_preprocess){1, true}, source);
    assert_true(cache_key_parse(&parsed, (bytes){(unsigned char *)key.text, CACHE_KEY_CHARS}));
    assert_string_equal(parsed.text, key.text);
    for (size_t len = 0; len <= CACHE_KEY_CHARS + 1; len++)
        if (len != CACHE_KEY_CHARS)
            assert_false(cache_key_parse(&parsed, (bytes){(unsigned char *)key.text, len}));
    static const char hostile[] = {'\0', '\n', ' ', 'A', 'g', '\x7f', '\xff', '*'};
    for (size_t i = 0; i < CACHE_KEY_CHARS; i++)
        for (size_t k = 0; k < sizeof hostile; k++) {
            cache_key broken = key;
            broken.text[i] = hostile[k];
            if (cache_key_parse(&parsed, (bytes){(unsigned char *)broken.text, CACHE_KEY_CHARS}))
                fail_msg("accepted byte %d at %zu", hostile[k], i);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_key_has_the_form_its_header_draws),
        cmocka_unit_test(whatever_changes_the_features_changes_the_key),
        cmocka_unit_test(only_well_formed_keys_are_taken_from_outside),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
