/* What the files behind base/options.h share: names made from rows, numbers as people write them, and
 * rows every program has. Not for other folders. */
#ifndef BASE_OPTIONS_INTERNAL_H
#define BASE_OPTIONS_INTERNAL_H

#include "base/buf.h"
#include "base/options.h"

#define OPTION_TEXT_BYTES 128

/* "max-new-tokens" -> "MIPHA_MAX_NEW_TOKENS". */
void option_environment_name(char out[OPTION_TEXT_BYTES], const option_row *row);

/* A limit or a value the way it would be typed: 4096, 0.5, 64M. */
void option_number_text(char out[OPTION_TEXT_BYTES], option_type type, double v);

/* "--help" and "--version"; ends with a row without a name. */
extern const option_row option_common_rows[];

/* Calls visit for the table's rows, then for the common ones. */
typedef void option_visit(void *self, const option_row *row);
void option_each_row(const option_table *table, option_visit *visit, void *self);

/* -h stands for --help unless the table gives the letter to a row of its own. */
char option_short_name(const option_table *table, const option_row *row);

bool option_is_number(const option_row *row);
bool option_flag_is_on_by_default(const option_row *row);

/* "1 to 4096; default 64; env MIPHA_MAX_NEW_TOKENS", empty for the common rows. */
void option_notes(buf *out, const option_row *row);

#endif
