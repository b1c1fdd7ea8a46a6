/* WebP by libwebp: features first, then the container, then one frame.
 *
 * Every file goes through the demultiplexer, as in Pillow: it refuses incomplete files and frames
 * that do not lie inside the canvas. The first frame is decoded straight into its place on a black
 * canvas; that equals what the animation decoder gives with alpha dropped, at a quarter of its
 * memory. */
#include <string.h>

#include <webp/decode.h>
#include <webp/demux.h>

#include "vision_node/image_formats.h"

static const char *reason_of(VP8StatusCode code) {
    switch (code) {
    case VP8_STATUS_OK: return "no error";
    case VP8_STATUS_OUT_OF_MEMORY: return "out of memory";
    case VP8_STATUS_INVALID_PARAM: return "invalid parameter";
    case VP8_STATUS_BITSTREAM_ERROR: return "damaged bitstream";
    case VP8_STATUS_UNSUPPORTED_FEATURE: return "unsupported feature";
    case VP8_STATUS_SUSPENDED: return "file is truncated";
    case VP8_STATUS_USER_ABORT: return "aborted";
    case VP8_STATUS_NOT_ENOUGH_DATA: return "file is truncated";
    }
    return "unknown error";
}

static status decode_frame(image_rgb *out, const WebPIterator *frame, err *e) {
    if (frame->x_offset < 0 || frame->y_offset < 0 || frame->width <= 0 || frame->height <= 0 ||
        frame->x_offset > out->width - frame->width || frame->y_offset > out->height - frame->height)
        return fail(e, STATUS_IMAGE_UNDECODABLE,
                    "WebP: frame of %d x %d at %d, %d outside the canvas of %d x %d", frame->width,
                    frame->height, frame->x_offset, frame->y_offset, out->width, out->height);
    size_t stride = (size_t)out->width * 3;
    if (frame->width != out->width || frame->height != out->height)
        memset(out->pixels, 0, stride * (size_t)out->height);
    WebPDecoderConfig config;
    if (!WebPInitDecoderConfig(&config))
        return fail(e, STATUS_INTERNAL, "WebP: libwebp is of another version than its headers");
    unsigned char *at = image_rgb_row(out, frame->y_offset) + 3 * (size_t)frame->x_offset;
    config.output.colorspace = MODE_RGB;
    config.output.is_external_memory = 1;
    config.output.u.RGBA.rgba = at;
    config.output.u.RGBA.stride = (int)stride;
    config.output.u.RGBA.size = stride * ((size_t)frame->height - 1) + 3 * (size_t)frame->width;
    VP8StatusCode code = WebPDecode(frame->fragment.bytes, frame->fragment.size, &config);
    WebPFreeDecBuffer(&config.output);
    if (code != VP8_STATUS_OK)
        return fail(e, STATUS_IMAGE_UNDECODABLE, "WebP: %s", reason_of(code));
    return STATUS_OK;
}

status image_webp_decode(image_rgb *out, bytes encoded, const image_limits *limits, err *e) {
    WebPBitstreamFeatures features;
    VP8StatusCode code = WebPGetFeatures(encoded.data, encoded.len_bytes, &features);
    if (code != VP8_STATUS_OK)
        return fail(e, STATUS_IMAGE_UNDECODABLE, "WebP: %s", reason_of(code));
    status st = image_rgb_open(out, (uint64_t)features.width, (uint64_t)features.height, limits, e);
    if (st != STATUS_OK) return st;

    WebPData data = {encoded.data, encoded.len_bytes};
    WebPDemuxer *container = WebPDemux(&data);
    WebPIterator frame = {0};
    if (!container) {
        st = fail(e, STATUS_IMAGE_UNDECODABLE, "WebP: file is truncated or its chunks are damaged");
    } else if (WebPDemuxGetI(container, WEBP_FF_CANVAS_WIDTH) != (uint32_t)out->width ||
               WebPDemuxGetI(container, WEBP_FF_CANVAS_HEIGHT) != (uint32_t)out->height) {
        st = fail(e, STATUS_IMAGE_UNDECODABLE, "WebP: header and container disagree about the size");
    } else if (!WebPDemuxGetFrame(container, 1, &frame)) {
        st = fail(e, STATUS_IMAGE_UNDECODABLE, "WebP: no frame");
    } else {
        st = decode_frame(out, &frame, e);
    }
    WebPDemuxReleaseIterator(&frame);
    WebPDemuxDelete(container);
    if (st != STATUS_OK) image_rgb_deinit(out);
    return st;
}
