/* Parsing of command lines and of the environment twins.
 *
 * Flags are read first and the environment only for rows no flag has set, so that a wrong variable never
 * stands in the way of the flag that overrides it, nor of --help. Each value is turned into its type
 * once, here, through the same function for flag, environment and default; a default that does not
 * parse is our own mistake and stops the program. Texts are copied: the environment may change later.
 * The names, numbers and notes that help, completion and man pages print live at the end. */
#include "base/options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/options_internal.h"

struct option_value {
    bool is_set;   /* by flag or environment */
    bool is_typed; /* by flag */
    bool flag;
    int64_t whole; /* INT */
    uint64_t size; /* BYTES */
    double real;
    char **items; /* STRING: at most one; LIST: n_items */
    size_t n_items;
};

const option_row option_common_rows[] = {
    {.name = "help", .type = OPTION_FLAG, .help = "show this text and exit"},
    {.name = "version", .type = OPTION_FLAG, .help = "show the version and exit"},
    {.name = NULL}};

/* ---- values ---- */

static void clear_items(struct option_value *v) {
    for (size_t i = 0; i < v->n_items; i++) free(v->items[i]);
    free(v->items);
    v->items = NULL;
    v->n_items = 0;
}

static status add_item(struct option_value *v, const char *text, size_t len, err *e) {
    char **grown = realloc(v->items, (v->n_items + 1) * sizeof *grown);
    if (!grown) return fail(e, STATUS_NO_MEMORY, "options: out of memory");
    v->items = grown;
    char *copy = strndup(text, len);
    if (!copy) return fail(e, STATUS_NO_MEMORY, "options: out of memory");
    v->items[v->n_items++] = copy;
    return STATUS_OK;
}

static status check_range(const option_row *row, double v, const char *where, const char *text,
                          err *e) {
    char limit[OPTION_TEXT_BYTES];
    if (v < row->min) {
        option_number_text(limit, row->type, row->min);
        return fail(e, STATUS_BAD_ARGUMENT, "%s: %s is below the minimum %s", where, text, limit);
    }
    if (v > row->max) {
        option_number_text(limit, row->type, row->max);
        return fail(e, STATUS_BAD_ARGUMENT, "%s: %s is above the maximum %s", where, text, limit);
    }
    return STATUS_OK;
}

/* A sign (when allowed) and digits only; strtoll alone would take leading spaces. */
static bool is_whole(const char *text, size_t len, bool may_be_negative) {
    size_t i = may_be_negative && len > 0 && (text[0] == '-' || text[0] == '+') ? 1 : 0;
    if (i == len) return false;
    for (; i < len; i++)
        if (!isdigit((unsigned char)text[i])) return false;
    return true;
}

static status parse_whole(const option_row *row, struct option_value *v, const char *where,
                          const char *text, err *e) {
    if (!is_whole(text, strlen(text), true))
        return fail(e, STATUS_BAD_ARGUMENT, "%s: \"%s\" is not a whole number", where, text);
    errno = 0;
    long long parsed = strtoll(text, NULL, 10);
    /* Beyond 64 bits the sign still says which limit was passed. */
    double as_real = errno == ERANGE ? (text[0] == '-' ? -HUGE_VAL : HUGE_VAL) : (double)parsed;
    v->whole = parsed;
    return check_range(row, as_real, where, text, e);
}

static status parse_real(const option_row *row, struct option_value *v, const char *where,
                         const char *text, err *e) {
    char *end = NULL;
    double parsed = strtod(text, &end);
    bool plain = text[0] != '\0' && text[strspn(text, "+-.0123456789eE")] == '\0';
    if (!plain || *end != '\0' || isnan(parsed))
        return fail(e, STATUS_BAD_ARGUMENT, "%s: \"%s\" is not a number", where, text);
    v->real = parsed;
    return check_range(row, parsed, where, text, e);
}

static status parse_size(const option_row *row, struct option_value *v, const char *where,
                         const char *text, err *e) {
    size_t len = strlen(text);
    unsigned shift = 0;
    if (len > 0) {
        int unit = toupper((unsigned char)text[len - 1]);
        shift = unit == 'K' ? 10 : unit == 'M' ? 20 : unit == 'G' ? 30 : 0;
        if (shift) len--;
    }
    if (!is_whole(text, len, false))
        return fail(e, STATUS_BAD_ARGUMENT,
                    "%s: \"%s\" is not a size; write bytes, or K, M or G as in 64M", where, text);
    errno = 0;
    unsigned long long n = strtoull(text, NULL, 10);
    bool wraps = errno == ERANGE || (shift && n > (UINT64_MAX >> shift));
    v->size = wraps ? UINT64_MAX : (uint64_t)n << shift;
    return check_range(row, wraps ? HUGE_VAL : (double)v->size, where, text, e);
}

static status parse_truth(struct option_value *v, const char *where, const char *text, err *e) {
    static const char *const yes[] = {"1", "true", "yes", "on"};
    static const char *const no[] = {"0", "false", "no", "off"};
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++) {
        bool is_yes = strcmp(text, yes[i]) == 0;
        if (!is_yes && strcmp(text, no[i]) != 0) continue;
        v->flag = is_yes;
        return STATUS_OK;
    }
    return fail(e, STATUS_BAD_ARGUMENT, "%s: \"%s\" is neither yes nor no; write 1 or 0", where,
                text);
}

/* Gives the row the value in text; where is the flag or the variable as the person wrote it. */
static status parse_value(const option_row *row, struct option_value *v, const char *where,
                          const char *text, err *e) {
    switch (row->type) {
    case OPTION_FLAG:
        return parse_truth(v, where, text, e);
    case OPTION_STRING:
        clear_items(v);
        return add_item(v, text, strlen(text), e);
    case OPTION_INT:
        return parse_whole(row, v, where, text, e);
    case OPTION_REAL:
        return parse_real(row, v, where, text, e);
    case OPTION_BYTES:
        return parse_size(row, v, where, text, e);
    case OPTION_LIST:
        return add_item(v, text, strlen(text), e);
    }
    CHECK(false, "an option row has one of the known types");
    return STATUS_INTERNAL;
}

/* ---- names ---- */

static size_t min3(size_t a, size_t b, size_t c) {
    size_t ab = a < b ? a : b;
    return ab < c ? ab : c;
}

/* Edit distance with swapped neighbours counted once (optimal string alignment), over at most
 * NAME_MAX_CHARS characters: three rows of the usual table are enough. */
#define NAME_MAX_CHARS 48
static size_t distance(const char *a, size_t n_a, const char *b, size_t n_b) {
    size_t rows[3][NAME_MAX_CHARS + 1];
    if (n_a > NAME_MAX_CHARS || n_b > NAME_MAX_CHARS) return NAME_MAX_CHARS;
    for (size_t j = 0; j <= n_b; j++) rows[0][j] = j;
    for (size_t i = 1; i <= n_a; i++) {
        size_t *now = rows[i % 3], *above = rows[(i + 2) % 3], *above2 = rows[(i + 1) % 3];
        now[0] = i;
        for (size_t j = 1; j <= n_b; j++) {
            now[j] = min3(above[j] + 1, now[j - 1] + 1, above[j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                now[j] = min3(now[j], now[j], above2[j - 2] + 1);
        }
    }
    return rows[n_a % 3][n_b];
}

typedef struct {
    const char *name;
    size_t len;
    const char *best;
    size_t best_distance;
} suggestion;

static void consider(void *self, const option_row *row) {
    suggestion *s = self;
    size_t d = distance(s->name, s->len, row->name, strlen(row->name));
    if (s->len >= 2 && strncmp(s->name, row->name, s->len) == 0) d = 0; /* a beginning of it */
    size_t allowed = s->len < 4 ? 1 : s->len < 8 ? 2 : 3;
    if (d > allowed || d >= s->best_distance) return;
    s->best = row->name;
    s->best_distance = d;
}

static status unknown_option(const option_table *table, const char *name, size_t len, err *e) {
    suggestion s = {.name = name, .len = len, .best_distance = NAME_MAX_CHARS};
    option_each_row(table, consider, &s);
    int shown = len > 200 ? 200 : (int)len;
    if (s.best)
        return fail(e, STATUS_BAD_ARGUMENT, "unknown option --%.*s; did you mean --%s?", shown,
                    name, s.best);
    return fail(e, STATUS_BAD_ARGUMENT, "unknown option --%.*s; %s --help lists all", shown, name,
                table->program);
}

static const option_row *row_by_name(const option_table *table, const char *name, size_t len) {
    for (const option_row *row = table->rows; row->name; row++)
        if (strlen(row->name) == len && memcmp(row->name, name, len) == 0) return row;
    for (const option_row *row = option_common_rows; row->name; row++)
        if (strlen(row->name) == len && memcmp(row->name, name, len) == 0) return row;
    return NULL;
}

static const option_row *row_by_letter(const option_table *table, char letter) {
    for (const option_row *row = table->rows; row->name; row++)
        if (row->short_name && row->short_name == letter) return row;
    return letter == 'h' ? &option_common_rows[0] : NULL;
}

/* ---- the command line ---- */

typedef struct {
    options *o;
    int argc;
    char **argv;
    int next; /* first argument not yet read */
} reader;

static struct option_value *value_of(options *o, const option_row *row) {
    return &o->values[row - o->table->rows];
}

static bool is_common(const option_row *row) {
    return row == &option_common_rows[0] || row == &option_common_rows[1];
}

/* Applies a row found on the command line; text NULL means that a flag stood alone. */
static status apply(reader *r, const option_row *row, const char *where, const char *text, err *e) {
    if (is_common(row)) {
        if (text) return fail(e, STATUS_BAD_ARGUMENT, "%s takes no value", where);
        *(row == &option_common_rows[0] ? &r->o->wants_help : &r->o->wants_version) = true;
        return STATUS_OK;
    }
    struct option_value *v = value_of(r->o, row);
    if (!v->is_set) clear_items(v); /* the default of a list gives way to the first flag */
    v->is_set = v->is_typed = true;
    if (row->type == OPTION_FLAG && !text) {
        v->flag = true;
        return STATUS_OK;
    }
    if (!text) {
        if (r->next >= r->argc)
            return fail(e, STATUS_BAD_ARGUMENT, "%s needs a value %s", where, row->value_name);
        text = r->argv[r->next++];
    }
    return parse_value(row, v, where, text, e);
}

static status read_long(reader *r, const char *arg, err *e) {
    const char *name = arg + 2, *equals = strchr(name, '=');
    size_t len = equals ? (size_t)(equals - name) : strlen(name);
    const option_row *row = row_by_name(r->o->table, name, len);
    if (!row && !equals && strncmp(name, "no-", 3) == 0) {
        row = row_by_name(r->o->table, name + 3, len - 3);
        bool can_be_off = row && row->type == OPTION_FLAG && !is_common(row);
        return can_be_off ? apply(r, row, arg, "no", e)
                          : unknown_option(r->o->table, name, len, e);
    }
    if (!row) return unknown_option(r->o->table, name, len, e);
    char where[OPTION_TEXT_BYTES];
    (void)snprintf(where, sizeof where, "--%s", row->name);
    return apply(r, row, where, equals ? equals + 1 : NULL, e);
}

/* -v, -vq (flags together), -p VALUE, -pVALUE. */
static status read_short(reader *r, const char *arg, err *e) {
    for (const char *letter = arg + 1; *letter; letter++) {
        char where[] = {'-', *letter, '\0'};
        const option_row *row = row_by_letter(r->o->table, *letter);
        if (!row)
            return fail(e, STATUS_BAD_ARGUMENT, "unknown option %s; %s --help lists all", where,
                        r->o->table->program);
        const char *rest = row->type != OPTION_FLAG && letter[1] ? letter + 1 : NULL;
        status st = apply(r, row, where, rest, e);
        if (st != STATUS_OK || row->type != OPTION_FLAG) return st;
    }
    return STATUS_OK;
}

static status read_arguments(reader *r, err *e) {
    bool only_words = false;
    while (r->next < r->argc && !r->o->wants_help && !r->o->wants_version) {
        char *arg = r->argv[r->next++];
        status st = STATUS_OK;
        if (only_words || arg[0] != '-' || arg[1] == '\0') /* "-" is a word: standard input */
            r->o->positional[r->o->n_positional++] = arg;
        else if (strcmp(arg, "--") == 0)
            only_words = true;
        else
            st = arg[1] == '-' ? read_long(r, arg, e) : read_short(r, arg, e);
        if (st != STATUS_OK) return st;
    }
    return STATUS_OK;
}

/* ---- the environment ---- */

static status read_lines(struct option_value *v, const char *text, err *e) {
    while (*text) {
        size_t len = strcspn(text, "\n");
        if (len > 0) {
            status st = add_item(v, text, len, e);
            if (st != STATUS_OK) return st;
        }
        text += len + (text[len] == '\n');
    }
    return STATUS_OK;
}

/* An empty variable counts as not set: that is how shells and unit files switch one off. */
static status read_environment(options *o, err *e) {
    for (const option_row *row = o->table->rows; row->name; row++) {
        struct option_value *v = value_of(o, row);
        if (v->is_set) continue;
        char name[OPTION_TEXT_BYTES];
        option_environment_name(name, row);
        const char *text = getenv(name);
        if (!text || !*text) continue;
        v->is_set = true;
        clear_items(v);
        status st = row->type == OPTION_LIST ? read_lines(v, text, e)
                                             : parse_value(row, v, name, text, e);
        if (st != STATUS_OK) return st;
    }
    return STATUS_OK;
}

static status check_positional(const options *o, err *e) {
    const option_table *t = o->table;
    if (o->n_positional < t->positional_min)
        return fail(e, STATUS_BAD_ARGUMENT, "needs %s: %d given, %d needed",
                    t->positional ? t->positional : "arguments", o->n_positional, t->positional_min);
    if (t->positional_max == 0 && o->n_positional > 0)
        return fail(e, STATUS_BAD_ARGUMENT, "unexpected argument \"%s\"; %s takes options only", o->positional[0], t->program);
    if (t->positional_max >= 0 && o->n_positional > t->positional_max)
        return fail(e, STATUS_BAD_ARGUMENT, "unexpected argument \"%s\"; %s takes at most %d",
                    o->positional[t->positional_max], t->program, t->positional_max);
    return STATUS_OK;
}

static status read_defaults(options *o, err *e) {
    for (const option_row *row = o->table->rows; row->name; row++) {
        CHECK(!option_is_number(row) || row->min < row->max, "a number's row has a range");
        CHECK(row->type == OPTION_FLAG || row->value_name, "help can name the value");
        if (!row->default_text) continue;
        status st = parse_value(row, value_of(o, row), row->name, row->default_text, e);
        CHECK(st == STATUS_OK || st == STATUS_NO_MEMORY, "a default is a legal value of its row");
        if (st != STATUS_OK) return st;
    }
    return STATUS_OK;
}

status options_parse(options *o, const option_table *table, int argc, char **argv, err *e) {
    size_t n_rows = 0;
    while (table->rows[n_rows].name) n_rows++;
    *o = (options){.table = table};
    o->values = calloc(n_rows + 1, sizeof *o->values);
    o->positional = calloc((size_t)(argc > 0 ? argc : 0) + 1, sizeof *o->positional);
    reader r = {.o = o, .argc = argc, .argv = argv, .next = 1};
    status st = o->values && o->positional
                    ? read_defaults(o, e)
                    : fail(e, STATUS_NO_MEMORY, "options: out of memory");
    if (st == STATUS_OK) st = read_arguments(&r, e);
    bool only_asks = o->wants_help || o->wants_version;
    if (st == STATUS_OK && !only_asks) st = read_environment(o, e);
    if (st == STATUS_OK && !only_asks) st = check_positional(o, e);
    if (st != STATUS_OK) options_deinit(o);
    return st;
}

void options_deinit(options *o) {
    if (o->values)
        for (const option_row *row = o->table->rows; row->name; row++)
            clear_items(value_of(o, row));
    free(o->values);
    free(o->positional);
    *o = (options){0};
}

/* ---- asking ---- */

static const struct option_value *asked_of(const options *o, const char *name, const option_row **found) {
    for (const option_row *row = o->table->rows; row->name; row++) {
        if (strcmp(row->name, name) != 0) continue;
        *found = row;
        return &o->values[row - o->table->rows];
    }
    CHECK(false, "an option that is asked for is in the table");
    return NULL;
}

static const struct option_value *asked(const options *o, const char *name, option_type type) {
    const option_row *row;
    const struct option_value *v = asked_of(o, name, &row);
    CHECK(row->type == type, "an option is asked for by its own type");
    return v;
}

bool options_flag(const options *o, const char *name) { return asked(o, name, OPTION_FLAG)->flag; }

const char *options_string(const options *o, const char *name) {
    const struct option_value *v = asked(o, name, OPTION_STRING);
    return v->n_items ? v->items[0] : NULL;
}

int64_t options_int(const options *o, const char *name) {
    return asked(o, name, OPTION_INT)->whole;
}

double options_real(const options *o, const char *name) {
    return asked(o, name, OPTION_REAL)->real;
}

uint64_t options_bytes(const options *o, const char *name) {
    return asked(o, name, OPTION_BYTES)->size;
}

size_t options_list(const options *o, const char *name, const char *const **items) {
    const struct option_value *v = asked(o, name, OPTION_LIST);
    *items = (const char *const *)v->items;
    return v->n_items;
}

bool options_is_set(const options *o, const char *name) {
    const option_row *row;
    return asked_of(o, name, &row)->is_set;
}

bool options_is_typed(const options *o, const char *name) {
    const option_row *row;
    return asked_of(o, name, &row)->is_typed;
}
