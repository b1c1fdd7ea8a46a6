#include "cli/terminal_text.h"

/* U+0080 to U+009F are C2 80 to C2 9F: terminals take some of them for commands. */
static bool is_c1(const unsigned char *p, size_t left) {
    return left >= 2 && p[0] == 0xc2 && p[1] >= 0x80 && p[1] <= 0x9f;
}

void terminal_text_write(FILE *to, const char *text, size_t n_bytes, bool escaped) {
    const unsigned char *p = (const unsigned char *)text;
    if (!escaped) {
        (void)fwrite(p, 1, n_bytes, to);
        return;
    }
    for (size_t i = 0; i < n_bytes; i++) {
        bool is_control = (p[i] < 0x20 && p[i] != '\n' && p[i] != '\t') || p[i] == 0x7f;
        if (is_c1(p + i, n_bytes - i)) {
            (void)fprintf(to, "\\x%02x", p[++i]);
        } else if (is_control) {
            (void)fprintf(to, "\\x%02x", p[i]);
        } else {
            (void)fputc(p[i], to);
        }
    }
}
