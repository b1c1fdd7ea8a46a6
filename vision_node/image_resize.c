/* Pillow's bicubic resampling, exactly.
 *
 * For an axis of n_in samples made n_out: scale = n_in / n_out, the filter is stretched by
 * max(scale, 1) (antialiasing), output i is centred at (i + 0.5) * scale, and its weights are
 * normalised in double before they become integers with 22 fractional bits. The order of every
 * double operation below is Pillow's; so is the order of the passes and the rounding to 8 bits
 * between them.
 *
 * A canvas around the image is never built: the taps that fall outside the image are summed once per
 * output sample and multiplied by the canvas colour. Rows that lie wholly on the canvas need no
 * first pass: normalised taps sum to 2^22 within n/2 units, so a constant row stays constant
 * (error 255 * n / 2 < 2^21 for every n below 16448; n is at most 4 * scale + 2).
 *
 * An axis whose size does not change gets one tap of exactly 2^22, which copies. */
#include "vision_node/image_resize.h"

#include <math.h>
#include <stdlib.h>

#include "vision_node/image_resize_kernel.h"

#define SUPPORT 2.0 /* of the cubic, in samples */
#define CUBIC_A (-0.5)

static double cubic(double x) {
    x = fabs(x);
    if (x < 1.0) return ((CUBIC_A + 2.0) * x - (CUBIC_A + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * CUBIC_A;
    return 0.0;
}

static int32_t to_fixed(double weight) {
    double scaled = weight * (double)(1 << IMAGE_RESIZE_BITS);
    return (int32_t)(weight < 0 ? scaled - 0.5 : scaled + 0.5);
}

static void axis_deinit(image_axis *axis) {
    free(axis->first);
    free(axis->n);
    free(axis->taps);
    free(axis->digits);
    free(axis->background_sum);
    *axis = (image_axis){0};
}

/* Weights of output i over the whole axis, in samples x0 .. x0 + n - 1. */
static int weigh(double *weights, int *x0, int i, int n_in, int n_out) {
    double scale = (double)n_in / n_out;
    double stretch = scale < 1.0 ? 1.0 : scale;
    double support = SUPPORT * stretch, inverse = 1.0 / stretch;
    double centre = (i + 0.5) * scale;
    int from = (int)(centre - support + 0.5), to = (int)(centre + support + 0.5);
    if (from < 0) from = 0;
    if (to > n_in) to = n_in;
    double sum = 0.0;
    for (int k = 0; k < to - from; k++) {
        weights[k] = cubic((k + from - centre + 0.5) * inverse);
        sum += weights[k];
    }
    for (int k = 0; k < to - from; k++)
        if (sum != 0.0) weights[k] /= sum;
    *x0 = from;
    return to - from;
}

/* n_in samples of which [offset, offset + n_image) are the image, made n_whole, of which n_out from `from`
 * are wanted. */
static status axis_init(image_axis *axis, int n_whole, int from, int n_out, int n_in, int offset, int n_image,
                        err *e) {
    double stretch = n_in > n_whole ? (double)n_in / n_whole : 1.0;
    int taps_max = (int)ceil(SUPPORT * stretch) * 2 + 1;
    size_t stride = ((size_t)taps_max + 3) & ~(size_t)3, n = (size_t)n_out;
    *axis = (image_axis){.n_out = n_out, .stride = (int)stride};
    axis->first = calloc(n, sizeof *axis->first);
    axis->n = calloc(n, sizeof *axis->n);
    axis->taps = calloc(n * stride, sizeof *axis->taps);
    axis->digits = calloc(n * stride / 4, sizeof *axis->digits);
    axis->background_sum = calloc(n, sizeof *axis->background_sum);
    double *weights = calloc(stride, sizeof *weights);
    if (!axis->first || !axis->n || !axis->taps || !axis->digits || !axis->background_sum || !weights) {
        free(weights);
        axis_deinit(axis);
        return fail(e, STATUS_NO_MEMORY, "coefficients to resize %d samples to %d", n_in, n_whole);
    }
    for (int i = 0; i < n_out; i++) {
        int x0 = from + i, n_weights = 1;
        if (n_in == n_whole) weights[0] = 1.0;
        else n_weights = weigh(weights, &x0, from + i, n_in, n_whole);
        int32_t *taps = axis->taps + (size_t)i * stride;
        for (int k = 0; k < n_weights; k++) {
            int x = x0 + k - offset;
            if (x < 0 || x >= n_image) {
                axis->background_sum[i] += to_fixed(weights[k]);
                continue;
            }
            if (axis->n[i] == 0) axis->first[i] = x;
            taps[axis->n[i]++] = to_fixed(weights[k]);
        }
    }
    for (size_t k = 0; k < n * stride; k++) image_tap_split(&axis->digits[k / 4], k % 4, axis->taps[k]);
    free(weights);
    return STATUS_OK;
}

static const image_resize_kernel *choose_kernel(void) {
#ifdef IMAGE_RESIZE_HAS_X86
    if (image_resize_vnni_works()) return &image_resize_vnni;
    if (image_resize_avx2_works()) return &image_resize_avx2;
#endif
    return &image_resize_generic;
}

void image_resize_across(const image_resize_kernel *kernel, unsigned char *to, const unsigned char *from, size_t n_rows,
                         size_t width, const image_axis *axis, const uint8_t background[3]) {
    size_t from_bytes = 3 * width, to_bytes = 3 * (size_t)axis->n_out, block = kernel->n_rows, needed = 0;
    for (int i = 0; i < axis->n_out; i++) {
        size_t end = 3 * (size_t)axis->first[i] + 12 * (((size_t)axis->n[i] + 3) / 4) + 4;
        if (end > needed) needed = end;
    }
    size_t n_plain = needed > from_bytes ? (needed - 1) / from_bytes : 0; /* rows too near the end */
    size_t n_wide = n_rows >= n_plain + block ? n_rows - n_plain : 0;
    for (size_t y = 0; y < n_wide; y += block) {
        if (n_wide - y < block) y = n_wide - block;
        kernel->across(to + y * to_bytes, from + y * from_bytes, from_bytes, axis, background);
    }
    for (size_t y = n_wide; y < n_rows; y++)
        image_resize_generic.across(to + y * to_bytes, from + y * from_bytes, from_bytes, axis, background);
}

/* rows [first, last) of the image are what the vertical pass reads. */
static status run_passes(unsigned char *out, const image_rgb *image, const image_axis *across,
                         const image_axis *down, const uint8_t background[3], err *e) {
    const image_resize_kernel *kernel = choose_kernel();
    int first = image->height, last = 0;
    for (int i = 0; i < down->n_out; i++) {
        if (down->n[i] == 0) continue;
        if (down->first[i] < first) first = down->first[i];
        if (down->first[i] + down->n[i] > last) last = down->first[i] + down->n[i];
    }
    if (last < first) last = first;
    size_t row_bytes = (size_t)across->n_out * 3, n_rows = (size_t)(last - first);
    unsigned char *rows = malloc(n_rows * row_bytes + 1);
    if (!rows) return fail(e, STATUS_NO_MEMORY, "%zu bytes to resize an image", n_rows * row_bytes);
    size_t width = (size_t)image->width;
    image_resize_across(kernel, rows, image->pixels + (size_t)first * width * 3, n_rows, width, across, background);
    for (int i = 0; i < down->n_out; i++) {
        size_t skip = down->n[i] ? (size_t)(down->first[i] - first) : 0;
        kernel->down(out + (size_t)i * row_bytes, rows + skip * row_bytes, row_bytes, down, i, background);
    }
    free(rows);
    return STATUS_OK;
}

static bool is_inside(const image_rgb *image, const image_canvas *canvas) {
    return canvas->x >= 0 && canvas->y >= 0 && canvas->width <= IMAGE_SIDE_MAX &&
           canvas->height <= IMAGE_SIDE_MAX && canvas->x <= canvas->width - image->width &&
           canvas->y <= canvas->height - image->height;
}

static bool is_part(int from, int n, int n_whole) { return from >= 0 && n <= n_whole && from <= n_whole - n; }

status image_resize(unsigned char *out, const image_target *target, const image_rgb *image,
                    const image_canvas *canvas, err *e) {
    const image_target *t = target;
    if (!image->pixels || image->width < 1 || image->height < 1 || image->width > IMAGE_SIDE_MAX ||
        image->height > IMAGE_SIDE_MAX)
        return fail(e, STATUS_BAD_ARGUMENT, "resize of an image of %d x %d", image->width,
                    image->height);
    if (t->out_width < 1 || t->out_height < 1 || t->out_width > IMAGE_RESIZE_SIDE_MAX ||
        t->out_height > IMAGE_RESIZE_SIDE_MAX)
        return fail(e, STATUS_BAD_ARGUMENT, "resize to %d x %d, each side must be 1..%d", t->out_width,
                    t->out_height, IMAGE_RESIZE_SIDE_MAX);
    if (!is_part(t->x, t->out_width, t->width) || !is_part(t->y, t->out_height, t->height))
        return fail(e, STATUS_BAD_ARGUMENT, "resize: %d x %d at %d, %d are not a part of %d x %d", t->out_width,
                    t->out_height, t->x, t->y, t->width, t->height);
    image_canvas whole = {.width = image->width, .height = image->height};
    if (!canvas) canvas = &whole;
    if (!is_inside(image, canvas))
        return fail(e, STATUS_BAD_ARGUMENT, "image of %d x %d at %d, %d not on a canvas of %d x %d",
                    image->width, image->height, canvas->x, canvas->y, canvas->width,
                    canvas->height);
    image_axis across = {0}, down = {0};
    status st = axis_init(&across, t->width, t->x, t->out_width, canvas->width, canvas->x, image->width, e);
    if (st != STATUS_OK) goto done;
    st = axis_init(&down, t->height, t->y, t->out_height, canvas->height, canvas->y, image->height, e);
    if (st != STATUS_OK) goto done;
    st = run_passes(out, image, &across, &down, canvas->rgb, e);
done:
    axis_deinit(&down);
    axis_deinit(&across);
    return st;
}
