/* Whether two names are of one file, links included. */
#ifndef BASE_SAME_FILE_H
#define BASE_SAME_FILE_H

#include <stdbool.h>
#include <sys/stat.h>

/* Whether path names the file that info is of; false where it names none, and for NULL. */
static inline bool is_same_file(const struct stat *info, const char *path) {
    struct stat named;
    return path && stat(path, &named) == 0 && named.st_dev == info->st_dev && named.st_ino == info->st_ino;
}

#endif
