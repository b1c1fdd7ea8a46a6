#include "cli/one_image.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/message.h"

#define READ_BYTES (1u << 20)

static status too_large(err *e, const char *path, long long n_bytes) {
    return fail(e, STATUS_IMAGE_TOO_LARGE, "%.300s: %lld bytes, limit %u", path, n_bytes,
                MESSAGE_IMAGE_BYTES_MAX);
}

/* The file may grow or shrink while it is read: what counts is what was read. */
static status read_all(buf *out, int fd, const char *path, err *e) {
    for (;;) {
        size_t left = MESSAGE_IMAGE_BYTES_MAX - out->len_bytes;
        size_t want = left < READ_BYTES ? left : READ_BYTES;
        unsigned char probe, *to = want ? buf_reserve(out, want) : &probe;
        if (!to) return fail(e, STATUS_NO_MEMORY, "%.300s: out of memory", path);
        ssize_t n = read(fd, to, want ? want : 1);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail_errno(e, STATUS_IMAGE_UNREADABLE, "%.300s", path);
        if (n > 0 && want == 0) return too_large(e, path, (long long)out->len_bytes + 1);
        if (n == 0) return STATUS_OK;
        out->len_bytes += (size_t)n;
    }
}

/* Opened without blocking: a pipe somebody forgot in a folder must not stop a run. */
status one_image_read_into(buf *image, const char *path, err *e) {
    struct stat info;
    size_t n_before = image->len_bytes;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    status st;
    if (fd < 0 || fstat(fd, &info) < 0)
        st = fail_errno(e, STATUS_IMAGE_UNREADABLE, "%.300s", path);
    else if (!S_ISREG(info.st_mode))
        st = fail(e, STATUS_IMAGE_UNREADABLE, "%.300s: %s", path,
                  S_ISDIR(info.st_mode) ? "is a folder" : "not a regular file");
    else if (info.st_size > (off_t)MESSAGE_IMAGE_BYTES_MAX)
        st = too_large(e, path, (long long)info.st_size);
    else
        st = read_all(image, fd, path, e);
    if (st == STATUS_OK && image->len_bytes == n_before)
        st = fail(e, STATUS_IMAGE_UNDECODABLE, "%.300s: the file is empty", path);
    if (fd >= 0) (void)close(fd);
    return st;
}

status one_image_read(buf *image, const char *path, err *e) {
    buf_init(image, MESSAGE_IMAGE_BYTES_MAX);
    status st = one_image_read_into(image, path, e);
    if (st != STATUS_OK) buf_deinit(image);
    return st;
}

status several_images_read(several_images *all, const char *const *paths, size_t n, err *e) {
    *all = (several_images){0};
    if (n > MESSAGE_IMAGES_MAX) return fail(e, STATUS_BAD_ARGUMENT, "%zu images, limit %d", n, MESSAGE_IMAGES_MAX);
    for (size_t i = 0; i < n; i++) {
        status st = one_image_read(&all->files[i], paths[i], e);
        if (st != STATUS_OK) {
            several_images_deinit(all);
            return st;
        }
        all->data[i] = (bytes){all->files[i].data, all->files[i].len_bytes};
        all->n++;
    }
    return STATUS_OK;
}

void several_images_deinit(several_images *all) {
    for (size_t i = 0; i < all->n; i++) buf_deinit(&all->files[i]);
    *all = (several_images){0};
}
