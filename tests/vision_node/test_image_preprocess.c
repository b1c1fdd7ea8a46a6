/* Resize and normalisation give Pillow's and the reference's bits. */
#include "tests/vision_node/image_cases.h"

#include <stdlib.h>
#include <string.h>

#include "vision_node/image_preprocess.h"
#include "vision_node/image_resize.h"
#include "vision_node/image_resize_kernel.h"

static status resize_whole(unsigned char *out, int width, int height, const image_rgb *image,
                           const image_canvas *canvas, err *e) {
    image_target target = {.width = width, .height = height, .out_width = width, .out_height = height};
    return image_resize(out, &target, image, canvas, e);
}

/* Grey rows worked out from the formulas of Pillow's Resample.c, as RGB. */
static void assert_row_resizes_to(int n_out, const unsigned char *want) {
    static const unsigned char row[8] = {0, 255, 0, 255, 128, 64, 32, 200};
    unsigned char source[3 * 8], out[3 * 16];
    for (int i = 0; i < 24; i++) source[i] = row[i / 3];
    image_rgb image = {.width = 8, .height = 1, .pixels = source};
    err e;
    assert_int_equal(resize_whole(out, n_out, 1, &image, NULL, &e), STATUS_OK);
    for (int i = 0; i < 3 * n_out; i++) assert_int_equal(out[i], want[i / 3]);
    image = (image_rgb){.width = 1, .height = 8, .pixels = source};
    assert_int_equal(resize_whole(out, 1, n_out, &image, NULL, &e), STATUS_OK);
    for (int i = 0; i < 3 * n_out; i++) assert_int_equal(out[i], want[i / 3]);
}

static void one_row_resizes_to_the_documented_values_on_either_axis(void **state) {
    (void)state;
    assert_row_resizes_to(3, (const unsigned char[]){113, 139, 96});
    assert_row_resizes_to(5, (const unsigned char[]){104, 116, 187, 53, 132});
    assert_row_resizes_to(8, (const unsigned char[]){0, 255, 0, 255, 128, 64, 32, 200});
    assert_row_resizes_to(
        12, (const unsigned char[]){0, 135, 236, 19, 120, 255, 150, 90, 55, 25, 119, 211});
}

static void a_small_picture_resizes_to_the_documented_values(void **state) {
    (void)state;
    unsigned char source[3 * 7 * 5], out[3 * 10 * 8];
    for (int i = 0; i < 3 * 7 * 5; i++) {
        int x = i / 3 % 7, y = i / 3 / 7;
        source[i] = (unsigned char)(37 * x + 91 * y + 13 * x * y);
    }
    image_rgb image = {.width = 7, .height = 5, .pixels = source};
    static const unsigned char two[] = {108, 140, 144, 124, 144, 137};
    static const unsigned char four[] = {28,  107, 133, 186, 162, 163, 132, 112,
                                         113, 150, 151, 167, 119, 109, 145, 110};
    static const unsigned char first[] = {0, 10, 38, 64, 88, 120, 158, 184, 212, 230};
    static const unsigned char last[] = {110, 174, 171, 24, 67, 158, 215, 68, 64, 129};
    err e;
    assert_int_equal(resize_whole(out, 3, 2, &image, NULL, &e), STATUS_OK);
    for (int i = 0; i < 6; i++) assert_int_equal(out[3 * i], two[i]);
    assert_int_equal(resize_whole(out, 4, 4, &image, NULL, &e), STATUS_OK);
    for (int i = 0; i < 16; i++) assert_int_equal(out[3 * i], four[i]);
    assert_int_equal(resize_whole(out, 10, 8, &image, NULL, &e), STATUS_OK);
    for (int i = 0; i < 10; i++) {
        assert_int_equal(out[3 * i], first[i]);
        assert_int_equal(out[3 * (70 + i)], last[i]);
    }
}

static void resize_row_matches(char *f[], int n, void *arg) {
    (void)arg;
    assert_int_equal(n, 7);
    int width = atoi(f[1]), height = atoi(f[2]), new_width = atoi(f[3]), new_height = atoi(f[4]);
    image_rgb image = image_case_pixels((uint32_t)atoi(f[0]), width, height);
    int side = width > height ? width : height;
    image_canvas canvas = {side, side, (side - width) / 2, (side - height) / 2, {127, 127, 127}};
    unsigned char *out = malloc((size_t)new_width * (size_t)new_height * 3);
    assert_non_null(out);
    err e = {0};
    bool padded = f[5][0] == '1';
    if (resize_whole(out, new_width, new_height, &image, padded ? &canvas : NULL, &e) != STATUS_OK)
        fail_msg("case %s: %s", f[0], e.text);
    char digest[IMAGE_DIGEST_BYTES];
    image_case_digest(digest, out, (size_t)new_width * (size_t)new_height * 3);
    if (strcmp(digest, f[6]) != 0)
        fail_msg("case %s: %d x %d to %d x %d, padded %d, differs from Pillow", f[0], width, height,
                 new_width, new_height, padded);
    free(out);
    image_rgb_deinit(&image);
}

static void five_hundred_sizes_resize_as_in_pillow(void **state) {
    (void)state;
    assert_int_equal(image_case_each("resize.tsv", resize_row_matches, NULL), 500);
}

static void a_part_of_a_resized_picture_has_the_bytes_of_the_whole(void **state) {
    (void)state;
    for (uint32_t seed = 0; seed < 200; seed++) {
        int n[4];
        for (uint32_t i = 0; i < 4; i++) n[i] = 1 + (int)(image_case_mix(i, seed) % 90);
        if (seed % 5 == 0) n[2] = n[0];
        image_rgb image = image_case_pixels(seed, n[0], n[1]);
        int side = n[0] > n[1] ? n[0] : n[1];
        image_canvas canvas = {side, side, (side - n[0]) / 2, (side - n[1]) / 2, {9, 127, 250}};
        const image_canvas *on = seed % 3 == 0 ? &canvas : NULL;
        image_target part = {.width = n[2], .height = n[3]};
        part.x = (int)(image_case_mix(5, seed) % (uint32_t)n[2]);
        part.y = (int)(image_case_mix(6, seed) % (uint32_t)n[3]);
        part.out_width = 1 + (int)(image_case_mix(7, seed) % (uint32_t)(n[2] - part.x));
        part.out_height = 1 + (int)(image_case_mix(8, seed) % (uint32_t)(n[3] - part.y));
        unsigned char *whole = malloc((size_t)(n[2] * n[3]) * 3);
        unsigned char *cut = malloc((size_t)(part.out_width * part.out_height) * 3);
        err e;
        assert_int_equal(resize_whole(whole, n[2], n[3], &image, on, &e), STATUS_OK);
        assert_int_equal(image_resize(cut, &part, &image, on, &e), STATUS_OK);
        size_t row_bytes = (size_t)part.out_width * 3;
        for (int y = 0; y < part.out_height; y++)
            assert_memory_equal(cut + (size_t)y * row_bytes, whole + ((size_t)(part.y + y) * (size_t)n[2] + (size_t)part.x) * 3,
                                row_bytes);
        free(whole), free(cut);
        image_rgb_deinit(&image);
    }
}

static model_preprocess_config processor_config(const char *name, int resize, int size, bool is_padded) {
    static const double means[3][3] = {{0.5, 0.5, 0.5}, {0.48145466, 0.4578275, 0.40821073}, {0.485, 0.456, 0.406}};
    static const double stds[3][3] = {{0.5, 0.5, 0.5}, {0.26862954, 0.26130258, 0.27577711}, {0.229, 0.224, 0.225}};
    int kind = strcmp(name, "siglip") == 0 ? 0 : strcmp(name, "clip") == 0 ? 1 : 2;
    model_preprocess_config config = image_case_config(size, is_padded);
    config.resize = resize;
    config.keeps_aspect = kind != 0;
    for (int c = 0; c < 3; c++) {
        config.mean[c] = (float)means[kind][c];
        config.std[c] = (float)stds[kind][c];
        config.pad_rgb[c] = (uint8_t)(means[kind][c] * 255.0);
    }
    return config;
}

static void processor_row_matches(char *f[], int n, void *arg) {
    (void)arg;
    assert_int_equal(n, 8);
    int size = atoi(f[5]);
    image_rgb image = image_case_pixels((uint32_t)atoi(f[1]), atoi(f[2]), atoi(f[3]));
    model_preprocess_config config = processor_config(f[0], atoi(f[4]), size, f[6][0] == '1');
    size_t n_bytes = (size_t)size * (size_t)size * 3 * sizeof(float);
    float *planes = malloc(n_bytes);
    err e;
    if (image_case_planes(planes, &image, &config, &e) != STATUS_OK) fail_msg("%s %s: %s", f[0], f[1], e.text);
    char digest[IMAGE_DIGEST_BYTES];
    image_case_digest(digest, planes, n_bytes);
    if (strcmp(digest, f[7]) != 0)
        fail_msg("%s: %s x %s to %s cut to %d, padded %s, differs from the reference", f[0], f[2], f[3], f[4], size, f[6]);
    free(planes);
    image_rgb_deinit(&image);
}

static void planes_are_those_of_the_image_processors_of_hugging_face(void **state) {
    (void)state;
    assert_int_equal(image_case_each("processors.tsv", processor_row_matches, NULL), 180);
}

#ifdef IMAGE_RESIZE_HAS_X86
/* Random taps, one of full range, every alignment, length and number of rows: stronger than any real filter. */
static int32_t random_tap(uint32_t salt, uint32_t seed, bool is_large) {
    int32_t range = is_large ? 4000000 : 100000; /* 24 of them times 255 fit 32 bits */
    return (int32_t)(image_case_mix(salt, seed) % (2 * (uint32_t)range)) - range;
}

static void assert_gives_the_bytes_of_plain_c(const image_resize_kernel *kernel, uint32_t seed) {
    enum { STRIDE = 24, ROWS_MAX = 30, WIDTH_MAX = 60, OUTS_MAX = 7, GUARD = 0xA5 };
    int n_rows = 1 + (int)(image_case_mix(0, seed) % ROWS_MAX), width = 1 + (int)(image_case_mix(1, seed) % WIDTH_MAX);
    int n_out = 1 + (int)(image_case_mix(9, seed) % OUTS_MAX), first[OUTS_MAX], n[OUTS_MAX];
    int32_t taps[OUTS_MAX * STRIDE] = {0}, background_sum[OUTS_MAX];
    image_tap_digits digits[OUTS_MAX * STRIDE / 4];
    image_axis axis = {n_out, STRIDE, first, n, taps, digits, background_sum};
    for (int turn = 0; turn < 2; turn++) { /* taps along a row of `width`, then down a column of `n_rows` */
        int n_in = turn == 0 ? width : n_rows;
        for (int i = 0; i < n_out; i++) {
            uint32_t salt = 1000 * (uint32_t)turn;
            first[i] = (int)(image_case_mix(salt + 2 + (uint32_t)i, seed) % (uint32_t)n_in);
            int left = n_in - first[i] < STRIDE ? n_in - first[i] : STRIDE;
            n[i] = (int)(image_case_mix(salt + 20 + (uint32_t)i, seed) % (uint32_t)(left + 1));
            for (int k = 0; k < STRIDE; k++)
                taps[i * STRIDE + k] =
                    k < n[i] ? random_tap(salt + 100 + (uint32_t)(STRIDE * i + k), seed, k == n[i] / 2) : 0;
            background_sum[i] = (int32_t)(image_case_mix(salt + 50 + (uint32_t)i, seed) % 1000000);
        }
        for (int k = 0; k < n_out * STRIDE; k++) image_tap_split(&digits[k / 4], (size_t)k % 4, taps[k]);
        const uint8_t background[3] = {1, 127, 255};
        image_rgb image = image_case_pixels(seed, width, n_rows); /* as many bytes as may be read */
        unsigned char plain[3 * ROWS_MAX * WIDTH_MAX + 1], vector[3 * ROWS_MAX * WIDTH_MAX + 1];
        memset(plain, GUARD, sizeof plain);
        memset(vector, GUARD, sizeof vector);
        size_t row_bytes = 3 * (size_t)width;
        if (turn == 0) {
            const image_resize_kernel *both[2] = {&image_resize_generic, kernel};
            for (int k = 0; k < 2; k++)
                image_resize_across(both[k], k ? vector : plain, image.pixels, (size_t)n_rows, (size_t)width, &axis, background);
        }
        for (int i = 0; turn == 1 && i < n_out; i++) {
            const unsigned char *from = image.pixels + (size_t)first[i] * row_bytes;
            image_resize_generic.down(plain + (size_t)i * row_bytes, from, row_bytes, &axis, i, background);
            kernel->down(vector + (size_t)i * row_bytes, from, row_bytes, &axis, i, background);
        }
        assert_memory_equal(plain, vector, sizeof plain);
        image_rgb_deinit(&image);
    }
}

static void inner_loops_for_avx2_give_the_bytes_of_plain_c(void **state) {
    (void)state;
    if (!image_resize_avx2_works()) skip();
    for (uint32_t seed = 0; seed < 1000; seed++) assert_gives_the_bytes_of_plain_c(&image_resize_avx2, seed);
}

static void inner_loops_for_vnni_give_the_bytes_of_plain_c(void **state) {
    (void)state;
    if (!image_resize_vnni_works()) skip();
    for (uint32_t seed = 0; seed < 1000; seed++) assert_gives_the_bytes_of_plain_c(&image_resize_vnni, seed);
}
#endif

static uint32_t bits_of(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static float normalised(unsigned char pixel, float mean, float std) {
    unsigned char source[3] = {pixel, pixel, pixel};
    image_rgb image = {.width = 1, .height = 1, .pixels = source};
    model_preprocess_config config = image_case_config(1, false);
    config.mean[0] = mean;
    config.std[0] = std;
    float planes[3];
    err e;
    assert_int_equal(image_case_planes(planes, &image, &config, &e), STATUS_OK);
    return planes[0];
}

static void normalised_pixels_have_the_documented_bits(void **state) {
    (void)state;
    static const struct {
        unsigned char pixel;
        float mean, std;
        uint32_t bits;
    } cases[] = {
        {0, 0.5F, 0.5F, 0xbf800000},
        {1, 0.5F, 0.5F, 0xbf7dfdfe},
        {127, 0.5F, 0.5F, 0xbb808080},
        {128, 0.5F, 0.5F, 0x3b808100},
        {254, 0.5F, 0.5F, 0x3f7dfdfe},
        {255, 0.5F, 0.5F, 0x3f800000},
        {0, 0.48145466F, 0.26862954F, 0xbfe568dc},
        {122, 0.48145466F, 0.26862954F, 0xbc3864e1},
        {127, 0.48145466F, 0.26862954F, 0x3d7ce092},
        {255, 0.48145466F, 0.26862954F, 0x3ff71541},
        {0, 0.485F, 0.229F, 0xc0078bbd},
        {128, 0.485F, 0.229F, 0x3d97af32},
        {255, 0.485F, 0.229F, 0x400fee1d},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_int_equal(bits_of(normalised(cases[i].pixel, cases[i].mean, cases[i].std)),
                         cases[i].bits);
}

static void planes_are_red_green_blue_and_row_major(void **state) {
    (void)state;
    unsigned char source[12] = {0, 51, 102, 153, 204, 255, 10, 20, 30, 40, 50, 60};
    image_rgb image = {.width = 2, .height = 2, .pixels = source};
    model_preprocess_config config = image_case_config(2, true);
    float planes[12];
    err e;
    assert_int_equal(image_case_planes(planes, &image, &config, &e), STATUS_OK);
    for (size_t c = 0; c < 3; c++)
        for (size_t i = 0; i < 4; i++)
            assert_int_equal(bits_of(planes[4 * c + i]),
                             bits_of(normalised(source[3 * i + c], 0.5F, 0.5F)));
}

static void a_line_of_65535_pixels_is_padded_and_cut_without_building_the_whole(void **state) {
    (void)state;
    image_rgb image = image_case_pixels(3, 65535, 1);
    model_preprocess_config config = image_case_config(64, true), cut = processor_config("clip", 336, 64, false);
    float *planes = malloc(sizeof(float) * 3 * 64 * 64);
    assert_non_null(planes);
    err e;
    for (int turn = 0; turn < 2; turn++) {
        assert_int_equal(image_case_planes(planes, &image, &config, &e), STATUS_OK);
        assert_int_equal(bits_of(planes[0]), 0xbb808080); /* 127: the corner is background */
        assert_int_equal(image_case_planes(planes, &image, &cut, &e), STATUS_OK); /* 22 million pixels long */
        image.width = 1;
        image.height = 65535;
    }
    free(planes);
    image_rgb_deinit(&image);
}

static void impossible_sizes_are_refused(void **state) {
    (void)state;
    unsigned char pixel[3] = {0};
    image_rgb image = {.width = 1, .height = 1, .pixels = pixel}, none = {0};
    unsigned char out[3];
    float planes[3];
    err e;
    assert_int_equal(resize_whole(out, 0, 1, &image, NULL, &e), STATUS_BAD_ARGUMENT);
    assert_int_equal(resize_whole(out, 1, IMAGE_RESIZE_SIDE_MAX + 1, &image, NULL, &e),
                     STATUS_BAD_ARGUMENT);
    assert_int_equal(resize_whole(out, 1, 1, &none, NULL, &e), STATUS_BAD_ARGUMENT);
    image_canvas small = {.width = 1, .height = 1, .x = 1};
    assert_int_equal(resize_whole(out, 1, 1, &image, &small, &e), STATUS_BAD_ARGUMENT);
    image_target outside = {.width = 4, .height = 4, .x = 2, .out_width = 3, .out_height = 4};
    assert_int_equal(image_resize(out, &outside, &image, NULL, &e), STATUS_BAD_ARGUMENT);
    outside.x = -1;
    assert_int_equal(image_resize(out, &outside, &image, NULL, &e), STATUS_BAD_ARGUMENT);
    model_preprocess_config config = image_case_config(0, false);
    assert_int_equal(image_case_planes(planes, &image, &config, &e), STATUS_BAD_ARGUMENT);
    assert_int_equal(image_rgb_orient(&image, 9, &e), STATUS_BAD_ARGUMENT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_row_resizes_to_the_documented_values_on_either_axis),
        cmocka_unit_test(a_small_picture_resizes_to_the_documented_values),
        cmocka_unit_test(five_hundred_sizes_resize_as_in_pillow),
        cmocka_unit_test(a_part_of_a_resized_picture_has_the_bytes_of_the_whole),
        cmocka_unit_test(planes_are_those_of_the_image_processors_of_hugging_face),
#ifdef IMAGE_RESIZE_HAS_X86
        cmocka_unit_test(inner_loops_for_avx2_give_the_bytes_of_plain_c),
        cmocka_unit_test(inner_loops_for_vnni_give_the_bytes_of_plain_c),
#endif
        cmocka_unit_test(normalised_pixels_have_the_documented_bits),
        cmocka_unit_test(planes_are_red_green_blue_and_row_major),
        cmocka_unit_test(a_line_of_65535_pixels_is_padded_and_cut_without_building_the_whole),
        cmocka_unit_test(impossible_sizes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
