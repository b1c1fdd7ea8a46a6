/* SHA-256 against the examples of FIPS 180-4 (NIST), XXH3 against the values of its reference program. */
#include "base/hash.h"

#include <stdlib.h>
#include <string.h>

#include "tests/support/support.h"

static void expect_sha256(const void *data, size_t len, const char *want) {
    unsigned char digest[HASH_SHA256_BYTES];
    char hex[HASH_HEX_BYTES];
    hash_sha256(digest, data, len);
    hash_hex(hex, digest, sizeof digest);
    assert_string_equal(hex, want);
}

static void sha256_gives_the_digests_of_the_standard(void **state) {
    (void)state;
    expect_sha256("", 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    expect_sha256("abc", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    expect_sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56,
                  "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    char *million = malloc(1000000);
    assert_non_null(million);
    memset(million, 'a', 1000000);
    expect_sha256(million, 1000000,
                  "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    free(million);
}

static void a_digest_over_pieces_equals_the_digest_over_the_whole(void **state) {
    (void)state;
    unsigned char data[300], whole[HASH_SHA256_BYTES], pieces[HASH_SHA256_BYTES];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (unsigned char)(i * 7);
    hash_sha256(whole, data, sizeof data);
    for (size_t cut = 0; cut <= sizeof data; cut++) {
        hash_sha256_stream *s = hash_sha256_open();
        hash_sha256_add(s, data, cut);
        hash_sha256_add(s, data + cut, sizeof data - cut);
        hash_sha256_finish(s, pieces);
        assert_memory_equal(pieces, whole, sizeof whole);
    }
}

/* Printed by python-xxhash: xxhash.xxh3_64_intdigest(bytes(i * 7 % 256 for i in range(n))); the lengths lie
 * on both sides of the borders between its code paths. */
static void xxh3_gives_the_values_of_its_reference(void **state) {
    (void)state;
    static unsigned char data[5000];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (unsigned char)(i * 7);
    assert_true(hash_xxh3("", 0) == UINT64_C(0x2d06800538d394c2));
    assert_true(hash_xxh3("a", 1) == UINT64_C(0xe6c632b61e964e1f));
    assert_true(hash_xxh3("abc", 3) == UINT64_C(0x78af5f94892f3950));
    assert_true(hash_xxh3(data, 241) == UINT64_C(0x541b19226f0052e8));
    assert_true(hash_xxh3(data, 5000) == UINT64_C(0x6abe8be5abcb2760));
}

static void hex_goes_both_ways_and_only_exactly(void **state) {
    (void)state;
    unsigned char all[256], back[256];
    char hex[513];
    for (int i = 0; i < 256; i++) all[i] = (unsigned char)i;
    hash_hex(hex, all, sizeof all);
    assert_memory_equal(hex, "000102030405060708090a0b0c0d0e0f10", 34);
    assert_true(hash_from_hex(back, sizeof back, hex));
    assert_memory_equal(back, all, sizeof all);
    assert_true(hash_from_hex(back, 3, "aBcDEf"));
    assert_memory_equal(back, "\xab\xcd\xef", 3);
    static const char *const wrong[] = {"", "ab", "abcde", "abcdefa", "abcdefab", "abcdeg", "abcde ",
                                        "0xabcd", "abcde\xff"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_false(hash_from_hex(back, 3, wrong[i]));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sha256_gives_the_digests_of_the_standard),
        cmocka_unit_test(a_digest_over_pieces_equals_the_digest_over_the_whole),
        cmocka_unit_test(xxh3_gives_the_values_of_its_reference),
        cmocka_unit_test(hex_goes_both_ways_and_only_exactly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
