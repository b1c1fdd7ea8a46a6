/* `--help`: flags on the left, one column of text on the right, wrapped at 80 columns.
 *
 * The column starts after the widest flag, but no later than LEFT_MAX; a wider flag has its text on the
 * next line. Range, default and variable stand in brackets under the sentence. */
#include <stdio.h>
#include <string.h>

#include "base/options_internal.h"

#define WIDTH    80
#define LEFT_MAX 30

typedef struct {
    const option_table *table;
    FILE *to;
    int left; /* column where the text starts */
} printer;

static int left_text(char *out, size_t out_bytes, const option_table *table, const option_row *row) {
    char letter[8] = "    ";
    char short_name = option_short_name(table, row);
    if (short_name) (void)snprintf(letter, sizeof letter, "-%c, ", short_name);
    return snprintf(out, out_bytes, "  %s--%s%s%s", letter, row->name, row->value_name ? " " : "",
                    row->value_name ? row->value_name : "");
}

static void measure(void *self, const option_row *row) {
    printer *p = self;
    char left[OPTION_TEXT_BYTES];
    int n = left_text(left, sizeof left, p->table, row) + 2;
    if (n <= LEFT_MAX && n > p->left) p->left = n;
}

/* Prints text from column `at` on, breaking between words, continuing at column `indent`. */
static void print_wrapped(FILE *to, const char *text, int at, int indent) {
    bool is_first = true;
    while (*text) {
        int len = (int)strcspn(text, " ");
        if (!is_first && at + 1 + len > WIDTH) {
            (void)fprintf(to, "\n%*s", indent, "");
            at = indent;
            is_first = true;
        }
        (void)fprintf(to, "%s%.*s", is_first ? "" : " ", len, text);
        at += len + !is_first;
        is_first = false;
        text += len;
        text += strspn(text, " ");
    }
    (void)fputc('\n', to);
}

static void print_row(void *self, const option_row *row) {
    printer *p = self;
    char left[OPTION_TEXT_BYTES];
    int n = left_text(left, sizeof left, p->table, row);
    (void)fputs(left, p->to);
    if (n + 2 > p->left) {
        (void)fputc('\n', p->to);
        n = 0;
    }
    (void)fprintf(p->to, "%*s", p->left - n, "");
    print_wrapped(p->to, row->help, p->left, p->left);
    buf notes;
    buf_init(&notes, 4096);
    option_notes(&notes, row);
    if (notes.len_bytes) {
        char line[4200];
        (void)snprintf(line, sizeof line, "[%s]", (const char *)notes.data);
        (void)fprintf(p->to, "%*s", p->left, "");
        print_wrapped(p->to, line, p->left, p->left);
    }
    buf_deinit(&notes);
}

void options_print_help(const option_table *table, FILE *to) {
    printer p = {.table = table, .to = to};
    int n = fprintf(to, "%s: ", table->program);
    print_wrapped(to, table->purpose, n, 2);
    (void)fprintf(to, "\nUsage: %s [OPTIONS]%s%s\n\nOptions:\n", table->program,
                  table->positional ? " " : "", table->positional ? table->positional : "");
    option_each_row(table, measure, &p);
    option_each_row(table, print_row, &p);
    if (table->example) {
        size_t len = strlen(table->example);
        (void)fprintf(to, "\nExample:\n%s%s", table->example,
                      len && table->example[len - 1] == '\n' ? "" : "\n");
    }
}
