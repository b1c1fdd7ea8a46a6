/* PNG by libpng, read as raw samples; the conversion to RGB is ours so that it is Pillow's.
 *
 * libpng is asked for at most 3 bytes a pixel: palette indices and grey as one byte, 16-bit grey as
 * two, colour with alpha stripped and 16 bits cut to the high byte. One- and two-byte rows are read
 * into the end of their RGB row and spread in place, as image_spread_grey does (two bytes from w + 2x
 * on). So interlaced images, which need all rows at once, cost no second copy of the image.
 *
 * As in Pillow: a wrong checksum is an error up to the first pixel data and is not looked at inside
 * it, and nothing after the last row matters. Unlike Pillow, pixel data that ends early inside a
 * complete file is an error (Pillow leaves the rest black).
 *
 * libpng reports errors by not returning; the state is kept as in image_jpeg.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <png.h>

#include "vision_node/image_formats.h"

#define CHUNK_CACHE_MAX    32
#define CHUNK_MALLOC_BYTES (1u << 20)
#define PALETTE_ENTRIES    256

typedef struct {
    png_structp lib;
    png_infop info;
    bytes encoded;
    size_t next;
    image_rgb *out;
    const image_limits *limits;
    png_bytepp rows;
    char reason[160];
    err *e;
} png_job;

static void leave(png_structp lib, png_const_charp reason) {
    png_job *job = png_get_error_ptr(lib);
    (void)snprintf(job->reason, sizeof job->reason, "%s", reason);
    png_longjmp(lib, 1);
}

static void drop_warning(png_structp lib, png_const_charp reason) {
    (void)lib;
    (void)reason;
}

static void source_read(png_structp lib, png_bytep to, size_t n) {
    png_job *job = png_get_io_ptr(lib);
    if (!bytes_has(job->encoded, job->next, n)) png_error(lib, "file is truncated");
    memcpy(to, job->encoded.data + job->next, n);
    job->next += n;
}

static void spread_grey16(unsigned char *row, size_t width) {
    const unsigned char *grey = row + width;
    for (size_t x = 0; x < width; x++) {
        unsigned char v = grey[2 * x] ? 255 : grey[2 * x + 1]; /* big endian; above 255 saturates */
        row[3 * x] = row[3 * x + 1] = row[3 * x + 2] = v;
    }
}

static void spread_palette(unsigned char *row, size_t width, const png_color *palette) {
    const unsigned char *index = row + 2 * width;
    for (size_t x = 0; x < width; x++) {
        png_color c = palette[index[x]];
        row[3 * x] = c.red;
        row[3 * x + 1] = c.green;
        row[3 * x + 2] = c.blue;
    }
}

/* Indices beyond the stored palette are black, as in Pillow. */
static void load_palette(png_job *job, png_color palette[PALETTE_ENTRIES]) {
    memset(palette, 0, PALETTE_ENTRIES * sizeof *palette);
    png_colorp stored = NULL;
    int n = 0;
    if (png_get_PLTE(job->lib, job->info, &stored, &n) == 0) return;
    for (int i = 0; i < n && i < PALETTE_ENTRIES; i++) palette[i] = stored[i];
}

static void spread_rows(png_job *job, int colour, int depth) {
    size_t width = (size_t)job->out->width;
    png_color palette[PALETTE_ENTRIES];
    if (colour == PNG_COLOR_TYPE_PALETTE) load_palette(job, palette);
    for (int y = 0; y < job->out->height; y++) {
        unsigned char *row = image_rgb_row(job->out, y);
        if (colour == PNG_COLOR_TYPE_PALETTE) spread_palette(row, width, palette);
        else if (colour == PNG_COLOR_TYPE_GRAY && depth == 16) spread_grey16(row, width);
        else image_spread_grey(row, width, depth < 8 ? 255u / ((1u << depth) - 1u) : 1u);
    }
}

static status decode_all(png_job *job) {
    png_structp lib = job->lib;
    png_set_read_fn(lib, job, source_read);
    png_set_user_limits(lib, PNG_UINT_31_MAX, PNG_UINT_31_MAX); /* ours follow below, with both numbers */
    png_set_chunk_cache_max(lib, CHUNK_CACHE_MAX);
    png_set_chunk_malloc_max(lib, CHUNK_MALLOC_BYTES);
    png_set_keep_unknown_chunks(lib, PNG_HANDLE_CHUNK_NEVER, NULL, -1); /* all but the critical */
    png_set_crc_action(lib, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
    png_read_info(lib, job->info);

    int colour = png_get_color_type(lib, job->info), depth = png_get_bit_depth(lib, job->info);
    status st = image_rgb_open(job->out, png_get_image_width(lib, job->info),
                               png_get_image_height(lib, job->info), job->limits, job->e);
    if (st != STATUS_OK) return st;
    bool is_grey16 = colour == PNG_COLOR_TYPE_GRAY && depth == 16;
    if (depth < 8) png_set_packing(lib);
    if (depth == 16 && !is_grey16) png_set_strip_16(lib);
    if (colour & PNG_COLOR_MASK_ALPHA) png_set_strip_alpha(lib);
    (void)png_set_interlace_handling(lib);
    png_set_crc_action(lib, PNG_CRC_QUIET_USE, PNG_CRC_QUIET_USE);
    png_read_update_info(lib, job->info);

    size_t width = (size_t)job->out->width, height = (size_t)job->out->height;
    bool is_rgb = (colour & PNG_COLOR_MASK_COLOR) && colour != PNG_COLOR_TYPE_PALETTE;
    size_t sample_bytes = is_rgb ? 3 : is_grey16 ? 2 : 1;
    if (png_get_rowbytes(lib, job->info) != width * sample_bytes)
        return fail(job->e, STATUS_INTERNAL, "PNG: rows of %zu bytes for %zu pixels",
                    png_get_rowbytes(lib, job->info), width);
    job->rows = malloc(height * sizeof *job->rows);
    if (!job->rows) return fail(job->e, STATUS_NO_MEMORY, "PNG: %zu row pointers", height);
    for (size_t y = 0; y < height; y++)
        job->rows[y] = image_rgb_row(job->out, (int)y) + width * (3 - sample_bytes);
    png_read_image(lib, job->rows);
    if (!is_rgb) spread_rows(job, colour, depth);
    return STATUS_OK;
}

/* Nothing here changes a local variable between setjmp and a jump back. */
static status decode_guarded(png_job *job) {
    if (setjmp(png_jmpbuf(job->lib)) == 0) return decode_all(job);
    return fail(job->e, STATUS_IMAGE_UNDECODABLE, "PNG: %s", job->reason);
}

status image_png_decode(image_rgb *out, bytes encoded, const image_limits *limits, err *e) {
    png_job job = {.encoded = encoded, .out = out, .limits = limits, .e = e};
    job.lib = png_create_read_struct(PNG_LIBPNG_VER_STRING, &job, leave, drop_warning);
    if (job.lib) job.info = png_create_info_struct(job.lib);
    status st = job.info ? decode_guarded(&job)
                         : fail(e, STATUS_NO_MEMORY, "PNG: opening libpng " PNG_LIBPNG_VER_STRING);
    free(job.rows);
    png_destroy_read_struct(&job.lib, &job.info, NULL);
    if (st != STATUS_OK) image_rgb_deinit(out);
    return st;
}
