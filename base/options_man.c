/* Manual pages in groff's man macros. Everything from a table is escaped: a backslash, a hyphen that
 * must stay a hyphen when copied, and a line that would begin with a request. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "base/options_internal.h"

/* One run of text without newlines, never at the start of a line unless starts_line. */
static void print_escaped(FILE *to, const char *text, size_t len, bool starts_line) {
    if (starts_line && len && (text[0] == '.' || text[0] == '\'')) (void)fputs("\\&", to);
    for (size_t i = 0; i < len; i++) {
        if (text[i] == '\\')
            (void)fputs("\\e", to);
        else if (text[i] == '-')
            (void)fputs("\\-", to);
        else if (text[i] == '\'')
            (void)fputs("\\(aq", to);
        else
            (void)fputc(text[i], to);
    }
}

static void print_text(FILE *to, const char *text) { print_escaped(to, text, strlen(text), false); }

static void print_sentence(FILE *to, const char *text) {
    if (!*text) return;
    /* A word and no value, as "f32" or "cpu, cuda" are, which stay what one has to write. */
    size_t n_letters = 0;
    while (isalpha((unsigned char)text[n_letters])) n_letters++;
    char first = text[n_letters] == ' ' ? (char)toupper((unsigned char)text[0]) : text[0];
    print_escaped(to, &first, 1, true);
    print_text(to, text + 1);
    (void)fputs(".\n", to);
}

static void print_lines(FILE *to, const char *text) {
    while (*text) {
        size_t len = strcspn(text, "\n");
        print_escaped(to, text, len, true);
        (void)fputc('\n', to);
        text += len + (text[len] == '\n');
    }
}

typedef struct {
    const option_table *table;
    FILE *to;
} printer;

static void print_row(void *self, const option_row *row) {
    printer *p = self;
    char short_name = option_short_name(p->table, row);
    (void)fputs(".TP\n", p->to);
    if (short_name) (void)fprintf(p->to, "\\fB\\-%c\\fR, ", short_name);
    (void)fputs("\\fB\\-\\-", p->to);
    print_text(p->to, row->name);
    (void)fputs("\\fR", p->to);
    if (row->value_name) {
        (void)fputs(" \\fI", p->to);
        print_text(p->to, row->value_name);
        (void)fputs("\\fR", p->to);
    }
    (void)fputc('\n', p->to);
    print_sentence(p->to, row->help);
    buf notes;
    buf_init(&notes, 4096);
    option_notes(&notes, row);
    if (notes.len_bytes) {
        (void)fputc('(', p->to);
        print_text(p->to, (const char *)notes.data);
        (void)fputs(")\n", p->to);
    }
    buf_deinit(&notes);
}

void options_print_man(const option_table *table, FILE *to) {
    char page[OPTION_TEXT_BYTES];
    (void)snprintf(page, sizeof page, "%s", table->program);
    for (char *c = page; *c; c++)
        if (*c == ' ') *c = '-';
    (void)fputs(".TH \"", to);
    for (const char *c = page; *c; c++) (void)fputc(toupper((unsigned char)*c), to);
    (void)fputs("\" 1 \"\" \"Mipha Serve\" \"User Commands\"\n.SH NAME\n", to);
    print_text(to, page);
    (void)fputs(" \\- ", to);
    print_text(to, table->purpose);
    (void)fputs("\n.SH SYNOPSIS\n.B ", to);
    print_text(to, table->program);
    (void)fputs("\n[\\fIOPTIONS\\fR]", to);
    if (table->positional) {
        (void)fputc(' ', to);
        print_text(to, table->positional);
    }
    (void)fputs("\n.SH DESCRIPTION\n", to);
    print_sentence(to, table->purpose);
    (void)fputs("A flag wins over its environment variable, and that over the default.\n"
                ".SH OPTIONS\n",
                to);
    printer p = {.table = table, .to = to};
    option_each_row(table, print_row, &p);
    if (table->example) {
        (void)fputs(".SH EXAMPLES\n.EX\n", to);
        print_lines(to, table->example);
        (void)fputs(".EE\n", to);
    }
}
