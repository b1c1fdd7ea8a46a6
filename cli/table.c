/* `mipha table`: result lines as a table for reading.
 *
 * Three columns, image, question and answer, as wide as their content allows within the terminal;
 * longer text is wrapped inside its column. Widths count code points, which is right for nearly all
 * text and off by a little for wide and combining characters. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cli/commands.h"

#define N_COLUMNS      3
#define GAP            2
#define WIDTH_DEFAULT  100
#define WIDTH_MIN      40
#define LINE_BYTES_MAX (16u << 20)

static const option_row rows[] = {
    {"width", 0, OPTION_INT, "N", NULL, WIDTH_MIN, 1000, "columns to use instead of the terminal's"},
    {0}};

const option_table table_table = {
    .program = "mipha table",
    .positional = "[RESULTS.jsonl]",
    .purpose = "show result lines as a readable table",
    .example = "  mipha annotate examples | mipha table\n",
    .rows = rows,
    .positional_max = 1};

typedef struct {
    char *cells[N_COLUMNS];
    size_t line_no;
} table_row;

typedef struct {
    table_row *rows;
    size_t n, n_max;
} table;

static size_t text_width(const char *text, size_t n_bytes) {
    size_t width = 0;
    for (size_t i = 0; i < n_bytes; i++) width += ((unsigned char)text[i] & 0xc0) != 0x80;
    return width;
}

/* Bytes of text that fill at most `width` columns, ending at a space where there is one. */
static size_t wrap_at(const char *text, size_t width) {
    size_t columns = 0, last_space = 0, i = 0;
    for (; text[i]; i++) {
        if (((unsigned char)text[i] & 0xc0) == 0x80) continue;
        if (columns == width) return last_space ? last_space : i;
        if (text[i] == ' ') last_space = i;
        columns++;
    }
    return i;
}

static void print_cell(const char **rest, size_t width, bool is_last) {
    while (**rest == ' ') (*rest)++;
    size_t n = wrap_at(*rest, width);
    (void)fwrite(*rest, 1, n, stdout);
    size_t used = text_width(*rest, n);
    if (!is_last)
        for (size_t i = used; i < width + GAP; i++) (void)putchar(' ');
    *rest += n;
}

static void print_row(const table_row *row, const size_t widths[N_COLUMNS]) {
    const char *rest[N_COLUMNS];
    for (int c = 0; c < N_COLUMNS; c++) rest[c] = row->cells[c];
    do {
        for (int c = 0; c < N_COLUMNS; c++) print_cell(&rest[c], widths[c], c == N_COLUMNS - 1);
        (void)putchar('\n');
    } while (*rest[0] || *rest[1] || *rest[2]);
}

/* Every column gets what it needs; if that is too much, the question and the answer share what the
 * image's name (at most a third) leaves over. */
static void choose_widths(size_t widths[N_COLUMNS], const table *t, size_t total) {
    memset(widths, 0, N_COLUMNS * sizeof *widths);
    for (size_t r = 0; r < t->n; r++)
        for (int c = 0; c < N_COLUMNS; c++) {
            size_t w = text_width(t->rows[r].cells[c], strlen(t->rows[r].cells[c]));
            if (w > widths[c]) widths[c] = w;
        }
    size_t room = total - (N_COLUMNS - 1) * GAP;
    if (widths[0] + widths[1] + widths[2] <= room) return;
    if (widths[0] > room / 3) widths[0] = room / 3;
    room -= widths[0];
    size_t half = room / 2;
    if (widths[1] < half)
        widths[2] = room - widths[1];
    else if (widths[2] < room - half)
        widths[1] = room - widths[2];
    else {
        widths[1] = half;
        widths[2] = room - half;
    }
}

/* Control characters would let an answer drive the terminal. */
static char *printable_copy(const char *text) {
    char *copy = strdup(text);
    if (copy)
        for (unsigned char *p = (unsigned char *)copy; *p; p++)
            if (*p < 0x20 || *p == 0x7f) *p = ' ';
    return copy;
}

static status add_row(table *t, const char *image, const char *question, const char *text,
                      size_t line_no, err *e) {
    if (t->n == t->n_max) {
        size_t n_max = t->n_max ? 2 * t->n_max : 64;
        table_row *grown = realloc(t->rows, n_max * sizeof *grown);
        if (!grown) return fail(e, STATUS_NO_MEMORY, "no memory for %zu rows", n_max);
        t->rows = grown;
        t->n_max = n_max;
    }
    table_row *row = &t->rows[t->n];
    row->cells[0] = printable_copy(image);
    row->cells[1] = printable_copy(question);
    row->cells[2] = printable_copy(text);
    row->line_no = line_no;
    t->n++;
    if (!row->cells[0] || !row->cells[1] || !row->cells[2])
        return fail(e, STATUS_NO_MEMORY, "no memory for row %zu", t->n);
    return STATUS_OK;
}

static void table_close(table *t) {
    for (size_t r = 0; r < t->n; r++)
        for (int c = 0; c < N_COLUMNS; c++) free(t->rows[r].cells[c]);
    free(t->rows);
}

static status add_result(table *t, const char *line, size_t n_bytes, size_t line_no,
                         err *e) {
    json_error_t bad;
    json_t *o = json_loadb(line, n_bytes, JSON_REJECT_DUPLICATES, &bad);
    const char *id, *image = "", *prompt = "", *text = "";
    json_int_t prompt_idx;
    json_t *failure = NULL;
    if (!o || json_unpack(o, "{s:s s:I s?s s?s s?s s?o}", "id", &id, "prompt_index", &prompt_idx, "image", &image,
                          "prompt", &prompt, "text", &text, "error", &failure) != 0) {
        json_decref(o);
        return fail(e, STATUS_BAD_FORMAT, "line %zu is not a result line", line_no);
    }
    char message[600];
    const char *code = NULL, *why = NULL;
    if (json_is_object(failure) && json_unpack(failure, "{s:s s:s}", "code", &code, "message", &why) == 0) {
        (void)snprintf(message, sizeof message, "(%s: %s)", code, why);
        text = message;
    }
    status st = add_row(t, image, prompt, text, line_no, e);
    json_decref(o);
    return st;
}

/* Results come in the order they were finished; the rows of one image belong together, in the order
 * they came. */
static int by_image(const void *a, const void *b) {
    const table_row *x = a, *y = b;
    int order = strcmp(x->cells[0], y->cells[0]);
    return order ? order : x->line_no < y->line_no ? -1 : 1;
}

static size_t total_width(const options *o) {
    if (options_is_set(o, "width")) return (size_t)options_int(o, "width");
    struct winsize size;
    if (isatty(STDOUT_FILENO) && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= WIDTH_MIN)
        return size.ws_col;
    return WIDTH_DEFAULT;
}

status table_run(const options *o, int *exit_code, err *e) {
    const char *path = o->n_positional ? o->positional[0] : "-";
    FILE *f = strcmp(path, "-") == 0 ? stdin : fopen(path, "r");
    if (!f) return fail_errno(e, STATUS_IO, "%s", path);

    table t = {0};
    status st = add_row(&t, "IMAGE", "QUESTION", "ANSWER", 0, e);
    char *line = NULL;
    size_t cap = 0, line_no = 0;
    for (ssize_t n; st == STATUS_OK && (n = getline(&line, &cap, f)) > 0;) {
        line_no++;
        if ((size_t)n > LINE_BYTES_MAX)
            st = fail(e, STATUS_TOO_LARGE, "%s line %zu: %zd bytes, limit %u", path, line_no, n,
                      LINE_BYTES_MAX);
        else
            st = add_result(&t, line, (size_t)n, line_no, e);
    }
    free(line);
    if (f != stdin) (void)fclose(f);

    if (st == STATUS_OK) {
        size_t widths[N_COLUMNS];
        qsort(t.rows + 1, t.n - 1, sizeof *t.rows, by_image); /* the header stays on top */
        choose_widths(widths, &t, total_width(o));
        const char *shown = NULL;
        for (size_t r = 0; r < t.n; r++) {
            table_row row = t.rows[r];
            bool repeats = shown && strcmp(shown, row.cells[0]) == 0;
            shown = t.rows[r].cells[0];
            char empty[1] = "";
            if (repeats) row.cells[0] = empty; /* an image's name stands once, beside its first question */
            print_row(&row, widths);
        }
    }
    table_close(&t);
    if (st == STATUS_OK) *exit_code = EXIT_ALL_ANSWERED;
    return st;
}
