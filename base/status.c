#include "base/status.h"

#include <string.h>

static const struct {
    const char *code;
    const char *text;
} rows[] = {
#define X(name, number, code, text) [number] = {code, text},
    STATUS_LIST(X)
#undef X
};

const char *status_code(int number) {
    if (number < 0 || number >= STATUS_COUNT) return "unknown";
    return rows[number].code;
}

const char *status_text(int number) {
    if (number < 0 || number >= STATUS_COUNT) return "unknown failure";
    return rows[number].text;
}

int status_from_code(const char *code) {
    for (int i = 0; i < STATUS_COUNT; i++)
        if (strcmp(rows[i].code, code) == 0) return i;
    return -1;
}

bool status_is_of_machine(status code) {
    return code == STATUS_NO_MEMORY || code == STATUS_IO || code == STATUS_UNAVAILABLE || code == STATUS_DEVICE;
}
