#include "cli/model_place.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int is_dir(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

void program_place(char dir[MODEL_PLACE_BYTES]) {
    ssize_t n = readlink("/proc/self/exe", dir, MODEL_PLACE_BYTES - 1);
    dir[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(dir, '/');
    if (slash)
        *slash = '\0';
    else
        (void)snprintf(dir, MODEL_PLACE_BYTES, ".");
}

status model_place(char dir[MODEL_PLACE_BYTES], const char *named, err *e) {
    if (named) {
        if (strlen(named) >= MODEL_PLACE_BYTES)
            return fail(e, STATUS_BAD_ARGUMENT, "model folder: name of %zu bytes, limit %d",
                        strlen(named), MODEL_PLACE_BYTES - 1);
        if (!is_dir(named)) return fail(e, STATUS_NOT_FOUND, "model %s: no such folder", named);
        memcpy(dir, named, strlen(named) + 1);
        return STATUS_OK;
    }
    char program[MODEL_PLACE_BYTES];
    program_place(program);
    int n = snprintf(dir, MODEL_PLACE_BYTES, "%s/../share/mipha/models/mipha-demo", program);
    if (n > 0 && n < MODEL_PLACE_BYTES && is_dir(dir)) return STATUS_OK;
    (void)snprintf(dir, MODEL_PLACE_BYTES, "%s", MIPHA_SOURCE_MODEL);
    if (is_dir(dir)) return STATUS_OK;
    return fail(e, STATUS_NOT_FOUND,
                "the demonstration model is neither in %.150s/../share/mipha/models nor in %.150s; "
                "name a checkpoint folder with --model", program, dir);
}
