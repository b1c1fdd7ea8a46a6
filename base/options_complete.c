/* Completion scripts for bash and zsh.
 *
 * Both find the sub-command the same way: words after the program are taken while they spell the
 * beginning of some table's name ("mipha model" of "mipha model inspect"), and what is left belongs to
 * that table. What a value looks like is guessed from its name in the table: DIR completes folders,
 * names with FILE, PATH, IMAGE or a dot complete files, anything else completes nothing. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/options_internal.h"

typedef struct {
    const char *program;
    const option_table *const *tables;
    size_t n;
    FILE *to;
} script;

/* What stands after the program in a table's name, with a space before each word; "" for the program
 * itself. */
static const char *command_of(const script *s, size_t i) {
    size_t len = strlen(s->program);
    const char *name = s->tables[i]->program;
    CHECK(strncmp(name, s->program, len) == 0 && (name[len] == ' ' || name[len] == '\0'),
          "a table's name starts with its program");
    return name + len;
}

static bool is_in_earlier(const script *s, size_t i, const char *prefix, size_t len) {
    for (size_t k = 0; k < i; k++) {
        const char *other = command_of(s, k);
        if (strncmp(other, prefix, len) == 0 && (other[len] == ' ' || other[len] == '\0'))
            return true;
    }
    return false;
}

/* Calls visit once for every sub-command and every beginning of one: " model", " model inspect". */
typedef void visit_command(const script *s, const char *command, size_t len);
static void each_command(const script *s, visit_command *visit) {
    for (size_t i = 0; i < s->n; i++) {
        const char *command = command_of(s, i);
        for (size_t len = 1; command[0] && len <= strlen(command); len++)
            if ((command[len] == ' ' || command[len] == '\0') && !is_in_earlier(s, i, command, len))
                visit(s, command, len);
    }
}

static const option_table *table_of(const script *s, const char *command, size_t len) {
    for (size_t i = 0; i < s->n; i++) {
        const char *name = command_of(s, i);
        if (strlen(name) == len && memcmp(name, command, len) == 0) return s->tables[i];
    }
    return NULL;
}

/* The words that may follow a command, each once. */
static void print_next_words(const script *s, const char *command, size_t len) {
    for (size_t i = 0; i < s->n; i++) {
        const char *name = command_of(s, i);
        if (strncmp(name, command, len) != 0 || name[len] != ' ') continue;
        size_t word = strcspn(name + len + 1, " ");
        if (!is_in_earlier(s, i, name, len + 1 + word))
            (void)fprintf(s->to, "%.*s ", (int)word, name + len + 1);
    }
}

typedef enum { VALUE_NOTHING, VALUE_FOLDER, VALUE_FILE } value_kind;

static value_kind kind_of_value(const char *name) {
    if (!name) return VALUE_NOTHING;
    if (strstr(name, "DIR")) return VALUE_FOLDER;
    if (strstr(name, "FILE") || strstr(name, "PATH") || strstr(name, "IMAGE") || strchr(name, '.'))
        return VALUE_FILE;
    return VALUE_NOTHING;
}

/* ---- bash ---- */

static void bash_case_label(const script *s, const char *command, size_t len) {
    (void)fprintf(s->to, "        '%.*s') path=\"$path $word\" ;;\n", (int)len, command);
}

static void bash_flag(void *to, const option_row *row) {
    (void)fprintf(to, "--%s ", row->name);
    if (option_flag_is_on_by_default(row)) (void)fprintf(to, "--no-%s ", row->name);
}

static void bash_values(const script *s, const option_table *table, value_kind kind,
                        const char *action) {
    bool is_first = true;
    for (const option_row *row = table->rows; row->name; row++) {
        if (row->type == OPTION_FLAG || kind_of_value(row->value_name) != kind) continue;
        (void)fprintf(s->to, "%s--%s", is_first ? "        " : "|", row->name);
        if (row->short_name) (void)fprintf(s->to, "|-%c", row->short_name);
        is_first = false;
    }
    if (!is_first) (void)fprintf(s->to, ") %s ;;\n", action);
}

static void bash_command(const script *s, const char *command, size_t len) {
    const option_table *table = table_of(s, command, len);
    (void)fprintf(s->to, "    '%.*s')\n        words='", (int)len, command);
    print_next_words(s, command, len);
    (void)fputs("'\n", s->to);
    if (table) {
        (void)fputs("        flags='", s->to);
        option_each_row(table, bash_flag, s->to);
        (void)fputs("'\n        case $prev in\n", s->to);
        bash_values(s, table, VALUE_FOLDER, "kind=folder");
        bash_values(s, table, VALUE_FILE, "kind=file");
        bash_values(s, table, VALUE_NOTHING, "kind=nothing");
        (void)fprintf(s->to, "        *) kind=%s ;;\n        esac\n",
                      table->positional ? "file" : "nothing");
    }
    (void)fputs("        ;;\n", s->to);
}

static void print_function_name(const char *program, FILE *to) {
    (void)fputc('_', to);
    for (const char *c = program; *c; c++) (void)fputc(isalnum((unsigned char)*c) ? *c : '_', to);
}

void options_print_bash(const char *program, const option_table *const *tables, size_t n,
                        FILE *to) {
    script s = {program, tables, n, to};
    (void)fprintf(to, "# bash completion for %s\n", program);
    print_function_name(program, to);
    (void)fputs("() {\n"
                "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}\n"
                "    local path='' words='' flags='--help --version' kind=nothing word i\n"
                "    # bash cuts --name=value into three words\n"
                "    if [[ $cur == '=' ]]; then\n"
                "        cur=''\n"
                "    elif [[ $prev == '=' && COMP_CWORD -ge 2 ]]; then\n"
                "        prev=${COMP_WORDS[COMP_CWORD - 2]}\n"
                "    fi\n"
                "    for ((i = 1; i < COMP_CWORD; i++)); do\n"
                "        word=${COMP_WORDS[i]}\n"
                "        case \"$path $word\" in\n",
                to);
    each_command(&s, bash_case_label);
    (void)fputs("        *) break ;;\n"
                "        esac\n"
                "    done\n"
                "    case \"$path\" in\n",
                to);
    bash_command(&s, "", 0);
    each_command(&s, bash_command);
    (void)fputs("    esac\n"
                "    COMPREPLY=()\n"
                "    if [[ $cur == -* ]]; then\n"
                "        mapfile -t COMPREPLY < <(compgen -W \"$flags\" -- \"$cur\")\n"
                "    elif [[ $kind == folder ]]; then\n"
                "        compopt -o filenames 2>/dev/null\n"
                "        mapfile -t COMPREPLY < <(compgen -d -- \"$cur\")\n"
                "    elif [[ -n $words ]]; then\n"
                "        mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")\n"
                "    elif [[ $kind == file ]]; then\n"
                "        compopt -o filenames 2>/dev/null\n"
                "        mapfile -t COMPREPLY < <(compgen -f -- \"$cur\")\n"
                "    fi\n"
                "}\n"
                "complete -F ",
                to);
    print_function_name(program, to);
    (void)fprintf(to, " %s\n", program);
}

/* ---- zsh ---- */

/* Inside '...[text]': a quote ends the word, brackets and colons mean something to _arguments. */
static void zsh_text(FILE *to, const char *text) {
    for (; *text; text++) {
        if (*text == '\'')
            (void)fputs("'\\''", to);
        else if (strchr("[]:\\", *text))
            (void)fprintf(to, "\\%c", *text);
        else
            (void)fputc(*text, to);
    }
}

static const char *zsh_action(const char *value_name) {
    switch (kind_of_value(value_name)) {
    case VALUE_FOLDER:
        return "_files -/";
    case VALUE_FILE:
        return "_files";
    case VALUE_NOTHING:
        break;
    }
    return " ";
}

static void zsh_spec(FILE *to, const option_row *row, const char *flag) {
    (void)fprintf(to, " \\\n            '%s%s", row->type == OPTION_LIST ? "*" : "", flag);
    if (row->type != OPTION_FLAG) (void)fputs(flag[1] == '-' ? "=" : "+", to);
    (void)fputc('[', to);
    zsh_text(to, row->help);
    (void)fputc(']', to);
    if (row->type != OPTION_FLAG) {
        (void)fputc(':', to);
        zsh_text(to, row->value_name);
        (void)fprintf(to, ":%s", zsh_action(row->value_name));
    }
    (void)fputc('\'', to);
}

typedef struct {
    FILE *to;
    const option_table *table;
} zsh_flags;

static void zsh_flag(void *self, const option_row *row) {
    const zsh_flags *z = self;
    char flag[OPTION_TEXT_BYTES];
    char short_name = option_short_name(z->table, row);
    if (short_name) {
        (void)snprintf(flag, sizeof flag, "-%c", short_name);
        zsh_spec(z->to, row, flag);
    }
    (void)snprintf(flag, sizeof flag, "--%s", row->name);
    zsh_spec(z->to, row, flag);
    if (option_flag_is_on_by_default(row)) {
        (void)snprintf(flag, sizeof flag, "--no-%s", row->name);
        zsh_spec(z->to, row, flag);
    }
}

static void zsh_case_label(const script *s, const char *command, size_t len) {
    (void)fprintf(s->to, "        ('%.*s') cmd=\"$cmd ${words[i]}\" ;;\n", (int)len, command);
}

static void zsh_command(const script *s, const char *command, size_t len) {
    const option_table *table = table_of(s, command, len);
    bool has_children = false;
    for (size_t i = 0; i < s->n; i++) {
        const char *name = command_of(s, i);
        has_children |= strncmp(name, command, len) == 0 && name[len] == ' ';
    }
    (void)fprintf(s->to, "    ('%.*s')\n        _arguments -s", (int)len, command);
    if (table) {
        zsh_flags z = {s->to, table};
        option_each_row(table, zsh_flag, &z);
    } else {
        for (const option_row *row = option_common_rows; row->name; row++) {
            char flag[OPTION_TEXT_BYTES];
            (void)snprintf(flag, sizeof flag, "--%s", row->name);
            zsh_spec(s->to, row, flag);
        }
    }
    if (has_children) {
        (void)fputs(" \\\n            '1:command:(", s->to);
        print_next_words(s, command, len);
        (void)fputs(")'", s->to);
    } else if (table && table->positional) {
        (void)fputs(" \\\n            '*:", s->to);
        zsh_text(s->to, table->positional);
        (void)fputs(":_files'", s->to);
    }
    (void)fputs("\n        ;;\n", s->to);
}

void options_print_zsh(const char *program, const option_table *const *tables, size_t n, FILE *to) {
    script s = {program, tables, n, to};
    (void)fprintf(to, "#compdef %s\n", program);
    print_function_name(program, to);
    (void)fputs("() {\n"
                "    local cmd='' i\n"
                "    for ((i = 2; i < CURRENT; i++)); do\n"
                "        case \"$cmd ${words[i]}\" in\n",
                to);
    each_command(&s, zsh_case_label);
    (void)fputs("        (*) break ;;\n"
                "        esac\n"
                "    done\n"
                "    ((i--))\n"
                "    words=(\"${(@)words[i,-1]}\")\n"
                "    ((CURRENT -= i - 1))\n"
                "    case \"$cmd\" in\n",
                to);
    zsh_command(&s, "", 0);
    each_command(&s, zsh_command);
    (void)fputs("    esac\n}\n", to);
    print_function_name(program, to);
    (void)fputs(" \"$@\"\n", to);
}
