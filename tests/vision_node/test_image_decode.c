/* Decoding gives Pillow's bytes: for every kind of file in tests/data/images, whole and damaged. */
#include "tests/vision_node/image_cases.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "vision_node/image_preprocess.h"

static void decode_row_matches(char *f[], int n, void *arg) {
    (void)arg;
    assert_int_equal(n, 9);
    size_t len_bytes;
    unsigned char *data = image_case_load(f[0], &len_bytes);
    image_rgb image = {0};
    image_info info;
    image_limits limits = {0};
    err e = {0};
    char digest[IMAGE_DIGEST_BYTES];
    if (image_decode(&image, &info, (bytes){data, len_bytes}, &limits, &e) != STATUS_OK)
        fail_msg("%s: %s", f[0], e.text);
    char format[8] = {0};
    for (size_t i = 0; f[1][i] && i < 7; i++) format[i] = f[1][i];
    const char *found = image_format_name(info.format);
    if (strcasecmp(found, format) != 0) fail_msg("%s: format %s, need %s", f[0], found, format);
    if (image.width != atoi(f[2]) || image.height != atoi(f[3]) || info.width != image.width ||
        info.height != image.height)
        fail_msg("%s: %d x %d, need %s x %s", f[0], image.width, image.height, f[2], f[3]);
    if (info.orientation != atoi(f[4]))
        fail_msg("%s: orientation %d, need %s", f[0], info.orientation, f[4]);
    image_case_digest_rgb(digest, &image);
    if (strcmp(digest, f[5]) != 0) fail_msg("%s: pixels differ from Pillow's", f[0]);

    enum { SIZE = 64 };
    float *planes = malloc(sizeof(float) * 3 * SIZE * SIZE);
    assert_non_null(planes);
    for (int pad = 0; pad < 2; pad++) {
        model_preprocess_config config = image_case_config(SIZE, pad != 0);
        assert_int_equal(image_case_planes(planes, &image, &config, &e), STATUS_OK);
        image_case_digest(digest, planes, sizeof(float) * 3 * SIZE * SIZE);
        if (strcmp(digest, f[7 + pad]) != 0) fail_msg("%s: planes differ, pad %d", f[0], pad);
    }
    free(planes);
    assert_int_equal(image_rgb_orient(&image, info.orientation, &e), STATUS_OK);
    image_case_digest_rgb(digest, &image);
    if (strcmp(digest, f[6]) != 0) fail_msg("%s: upright pixels differ from Pillow's", f[0]);
    image_rgb_deinit(&image);
    free(data);
}

static void every_example_decodes_turns_and_preprocesses_as_in_pillow(void **state) {
    (void)state;
    assert_true(image_case_each("decode.tsv", decode_row_matches, NULL) >= 60);
}

typedef struct {
    int n, n_equal, n_both_refuse, n_we_refuse, n_we_accept, n_pixels_differ;
} damage_count;

static void damage_row_compare(char *f[], int n, void *arg) {
    assert_int_equal(n, 4);
    damage_count *count = arg;
    size_t len_bytes;
    unsigned char *data = image_case_load(f[0], &len_bytes);
    unsigned char *hurt = image_case_damage(data, &len_bytes, f[1], (uint32_t)atoi(f[2]));
    image_rgb image = {0};
    image_info info;
    image_limits limits = {.pixels_max = 64 << 20}; /* flips make large sizes that Pillow takes */
    err e = {0};
    status st = image_decode(&image, &info, (bytes){hurt, len_bytes}, &limits, &e);
    bool pillow_refuses = strcmp(f[3], "refused") == 0;
    count->n++;
    const char *verdict = NULL;
    if (st != STATUS_OK && pillow_refuses) {
        count->n_both_refuse++;
    } else if (st != STATUS_OK) {
        count->n_we_refuse++;
        verdict = e.text;
    } else if (pillow_refuses) {
        count->n_we_accept++;
        verdict = "accepted, refused by Pillow";
    } else {
        char digest[IMAGE_DIGEST_BYTES];
        image_case_digest_rgb(digest, &image);
        if (strcmp(digest, f[3]) == 0) {
            count->n_equal++;
        } else {
            count->n_pixels_differ++;
            verdict = "pixels differ";
        }
    }
    if (verdict && getenv("MIPHA_TEST_VERBOSE"))
        print_message("%s %s %s: %s\n", f[0], f[1], f[2], verdict);
    if (st != STATUS_OK && e.text[0] == 0) fail_msg("%s %s %s: no reason given", f[0], f[1], f[2]);
    image_rgb_deinit(&image);
    free(hurt);
    free(data);
}

static void damaged_files_are_judged_as_by_pillow(void **state) {
    (void)state;
    damage_count count = {0};
    (void)image_case_each("damage.tsv", damage_row_compare, &count);
    print_message("%d damaged files: %d equal, %d refused by both, %d only by us, %d only by Pillow, "
                  "%d with other pixels\n",
                  count.n, count.n_equal, count.n_both_refuse, count.n_we_refuse, count.n_we_accept,
                  count.n_pixels_differ);
    assert_true(count.n > 3000);
    assert_int_equal(count.n_pixels_differ, 0);
    /* Known: libpng checks more of the chunk structure than Pillow, libjpeg less than Pillow's own
     * marker reader. */
    assert_true(count.n_we_refuse <= 20);
    assert_true(count.n_we_accept <= 5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_example_decodes_turns_and_preprocesses_as_in_pillow),
        cmocka_unit_test(damaged_files_are_judged_as_by_pillow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
