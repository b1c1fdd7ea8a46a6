/* JPEG by libjpeg-turbo's libjpeg interface at its defaults (islow IDCT, fancy upsampling), which is
 * what Pillow uses.
 *
 * Agreement about damaged files comes from reading the way Pillow does: the source never invents an
 * end-of-image marker but says "no more data", so a truncated file stops the decoder instead of
 * filling the rest with grey. Other damage (a bad Huffman code, an unexpected marker, extra bytes)
 * makes libjpeg warn and go on; Pillow ignores those warnings, and so does this file. As in Pillow,
 * a missing end-of-image marker after the last row is no error.
 *
 * libjpeg reports errors by not returning. All work between opening and closing happens in one
 * function below setjmp whose state lives in the job, so nothing held in a register can be lost. */
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

#include "vision_node/image_formats.h"

#define MEMORY_FIXED_BYTES     (16L << 20) /* tables, row buffers of a 65535 px wide image */
#define MEMORY_BYTES_PER_PIXEL 8           /* coefficients of a progressive CMYK 4:4:4:4 image */

typedef struct {
    struct jpeg_decompress_struct lib;
    struct jpeg_error_mgr errors;
    struct jpeg_source_mgr source;
    struct jpeg_progress_mgr progress;
    jmp_buf on_error;
    char reason[JMSG_LENGTH_MAX];
    image_rgb *out;
    bytes encoded;
    const image_limits *limits;
    err *e;
    status st; /* set before a jump when the reason is ours */
} jpeg_job;

static void leave(j_common_ptr lib) {
    jpeg_job *job = lib->client_data;
    lib->err->format_message(lib, job->reason);
    longjmp(job->on_error, 1);
}

static void drop_message(j_common_ptr lib) { (void)lib; }

static void drop_warning(j_common_ptr lib, int level) {
    if (level < 0) lib->err->num_warnings++;
}

static void source_nothing(j_decompress_ptr lib) { (void)lib; }

static boolean source_is_dry(j_decompress_ptr lib) {
    (void)lib;
    return FALSE;
}

static void source_skip(j_decompress_ptr lib, long n) {
    if (n <= 0) return;
    struct jpeg_source_mgr *source = lib->src;
    size_t step = (size_t)n < source->bytes_in_buffer ? (size_t)n : source->bytes_in_buffer;
    source->next_input_byte += step;
    source->bytes_in_buffer -= step;
}

/* Called for every row of blocks of every scan: a file of a few kilobytes can hold thousands of
 * scans, each of which walks over the whole image. */
static void count_scans(j_common_ptr lib) {
    jpeg_job *job = lib->client_data;
    if (job->lib.input_scan_number <= IMAGE_JPEG_SCANS_MAX) return;
    job->st = fail(job->e, STATUS_IMAGE_UNDECODABLE, "JPEG: more than %d scans",
                   IMAGE_JPEG_SCANS_MAX);
    longjmp(job->on_error, 1);
}

static status truncated(jpeg_job *job, const char *where) {
    return fail(job->e, STATUS_IMAGE_UNDECODABLE, "JPEG: file is truncated %s", where);
}

/* Pillow inverts all four bytes on reading, then R = nk - C * nk / 255 with nk = 255 - K. Source:
 * its Convert.c (cmyk2rgb) and Unpack.c ("CMYK;I"). c below is what libjpeg gives: 255 - C. */
static void convert_cmyk(unsigned char *rgb, const unsigned char *cmyk, size_t width) {
    for (size_t x = 0; x < width; x++, cmyk += 4, rgb += 3) {
        int nk = cmyk[3];
        for (int c = 0; c < 3; c++) {
            int t = (255 - cmyk[c]) * nk + 128;
            rgb[c] = (unsigned char)(nk - (((t >> 8) + t) >> 8));
        }
    }
}

static status read_rows(jpeg_job *job, unsigned char *cmyk) {
    struct jpeg_decompress_struct *lib = &job->lib;
    size_t width = lib->output_width;
    for (unsigned y = 0; y < lib->output_height; y++) {
        unsigned char *row = image_rgb_row(job->out, (int)y);
        JSAMPROW into = cmyk ? cmyk : lib->output_components == 1 ? row + 2 * width : row;
        if (jpeg_read_scanlines(lib, &into, 1) != 1) return truncated(job, "in its pixels");
        if (cmyk) convert_cmyk(row, cmyk, width);
        else if (lib->output_components == 1) image_spread_grey(row, width, 1);
    }
    return STATUS_OK;
}

static status decode_all(jpeg_job *job) {
    struct jpeg_decompress_struct *lib = &job->lib;
    jpeg_create_decompress(lib);
    job->source = (struct jpeg_source_mgr){.next_input_byte = job->encoded.data,
                                           .bytes_in_buffer = job->encoded.len_bytes,
                                           .init_source = source_nothing,
                                           .fill_input_buffer = source_is_dry,
                                           .skip_input_data = source_skip,
                                           .resync_to_restart = jpeg_resync_to_restart,
                                           .term_source = source_nothing};
    lib->src = &job->source;
    job->progress.progress_monitor = count_scans;
    lib->progress = &job->progress;
    if (jpeg_read_header(lib, TRUE) != JPEG_HEADER_OK) return truncated(job, "in its header");
    switch (lib->num_components) {
    case 1: lib->out_color_space = JCS_GRAYSCALE; break;
    case 3: lib->out_color_space = JCS_RGB; break;
    case 4: lib->out_color_space = JCS_CMYK; break;
    default:
        return fail(job->e, STATUS_IMAGE_UNDECODABLE, "JPEG: %d components, need 1, 3 or 4",
                    lib->num_components);
    }
    status st = image_rgb_open(job->out, lib->image_width, lib->image_height, job->limits, job->e);
    if (st != STATUS_OK) return st;
    long pixels = (long)lib->image_width * (long)lib->image_height;
    lib->mem->max_memory_to_use = MEMORY_FIXED_BYTES + MEMORY_BYTES_PER_PIXEL * pixels;

    if (!jpeg_start_decompress(lib)) return truncated(job, "between its scans");
    unsigned char *cmyk = NULL;
    if (lib->num_components == 4)
        cmyk = lib->mem->alloc_large((j_common_ptr)lib, JPOOL_IMAGE, (size_t)lib->output_width * 4);
    return read_rows(job, cmyk);
}

/* Nothing here changes a local variable between setjmp and a jump back. */
static status decode_guarded(jpeg_job *job) {
    if (setjmp(job->on_error) == 0) return decode_all(job);
    if (job->st != STATUS_OK) return job->st;
    return fail(job->e, STATUS_IMAGE_UNDECODABLE, "JPEG: %s", job->reason);
}

status image_jpeg_decode(image_rgb *out, bytes encoded, const image_limits *limits, err *e) {
    jpeg_job job = {.out = out, .encoded = encoded, .limits = limits, .e = e};
    job.lib.err = jpeg_std_error(&job.errors);
    job.errors.error_exit = leave;
    job.errors.output_message = drop_message;
    job.errors.emit_message = drop_warning;
    job.lib.client_data = &job;
    status st = decode_guarded(&job);
    jpeg_destroy_decompress(&job.lib);
    if (st != STATUS_OK) image_rgb_deinit(out);
    return st;
}
