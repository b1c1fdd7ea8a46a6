/* Names, numbers and notes as help, completion and man pages print them: said once, here, so that the
 * four outputs cannot disagree. */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/options_internal.h"

#define NO_LIMIT 1e18 /* a bound this far out is not worth showing */

void option_environment_name(char out[OPTION_TEXT_BYTES], const option_row *row) {
    int n = snprintf(out, OPTION_TEXT_BYTES, "MIPHA_%s", row->name);
    CHECK(n > 0 && n < OPTION_TEXT_BYTES, "an option's name is short");
    for (char *p = out; *p; p++) *p = *p == '-' ? '_' : (char)toupper((unsigned char)*p);
}

void option_number_text(char out[OPTION_TEXT_BYTES], option_type type, double v) {
    if (type == OPTION_BYTES) {
        static const char units[] = "KMG";
        int unit = -1;
        while (unit < 2 && v >= 1024 && fmod(v, 1024) == 0) v /= 1024, unit++;
        (void)snprintf(out, OPTION_TEXT_BYTES, "%.15g%.*s", v, unit >= 0, units + (unit > 0 ? unit : 0));
    } else {
        (void)snprintf(out, OPTION_TEXT_BYTES, "%.15g", v);
    }
}

void option_each_row(const option_table *table, option_visit *visit, void *self) {
    for (const option_row *row = table->rows; row->name; row++) visit(self, row);
    for (const option_row *row = option_common_rows; row->name; row++) visit(self, row);
}

char option_short_name(const option_table *table, const option_row *row) {
    if (row != &option_common_rows[0]) return row->short_name;
    for (const option_row *own = table->rows; own->name; own++)
        if (own->short_name == 'h') return 0;
    return 'h';
}

bool option_is_number(const option_row *row) {
    return row->type == OPTION_INT || row->type == OPTION_REAL || row->type == OPTION_BYTES;
}

bool option_flag_is_on_by_default(const option_row *row) {
    return row->type == OPTION_FLAG && row->default_text &&
           (strcmp(row->default_text, "1") == 0 || strcmp(row->default_text, "yes") == 0 ||
            strcmp(row->default_text, "true") == 0 || strcmp(row->default_text, "on") == 0);
}

static void add(buf *out, const char *separator, const char *text) {
    IGNORE(buf_append_text(out, out->len_bytes ? separator : ""), "notes are short");
    IGNORE(buf_append_text(out, text), "notes are short");
}

void option_notes(buf *out, const option_row *row) {
    for (const option_row *common = option_common_rows; common->name; common++)
        if (row == common) return;
    char low[OPTION_TEXT_BYTES], high[OPTION_TEXT_BYTES];
    if (option_is_number(row)) {
        option_number_text(low, row->type, row->min);
        option_number_text(high, row->type, row->max);
        if (row->min > -NO_LIMIT) {
            add(out, "; ", row->max < NO_LIMIT ? low : "at least ");
            add(out, row->max < NO_LIMIT ? " to " : "", row->max < NO_LIMIT ? high : low);
        } else if (row->max < NO_LIMIT) {
            add(out, "; ", "at most ");
            add(out, "", high);
        }
    }
    if (option_flag_is_on_by_default(row)) {
        add(out, "; ", "default on, --no-");
        add(out, "", row->name);
        add(out, "", " turns it off");
    } else if (row->default_text && row->type != OPTION_FLAG) {
        add(out, "; ", "default ");
        add(out, "", *row->default_text ? row->default_text : "\"\"");
    }
    if (row->type == OPTION_LIST && !strstr(row->help, "repeated")) add(out, "; ", "may be repeated");
    char name[OPTION_TEXT_BYTES];
    option_environment_name(name, row);
    add(out, "; ", "env ");
    add(out, "", name);
}
