/* What base/options.h promises about reading a command line and the environment. */
#include "base/options.h"

#include <stdlib.h>
#include <string.h>

#include "tests/support/support.h"

static const option_row rows[] = {
    {"model", 'm', OPTION_STRING, "DIR", "models/demo", 0, 0, "checkpoint folder"},
    {"broker", 0, OPTION_STRING, "ENDPOINT", NULL, 0, 0, "where the broker is"},
    {"max-new-tokens", 'n', OPTION_INT, "N", "64", 1, 4096, "longest answer, in tokens"},
    {"offset", 0, OPTION_INT, "N", NULL, -9e18, 9e18, "any whole number"},
    {"temperature", 0, OPTION_REAL, "T", "0.5", 0, 10, "randomness"},
    {"kv-bytes", 0, OPTION_BYTES, "BYTES", "64M", 1024, 1099511627776.0, "memory"},
    {"prompt", 'p', OPTION_LIST, "TEXT", "Describe.", 0, 0, "a question"},
    {"resume", 'r', OPTION_FLAG, NULL, NULL, 0, 0, "continue"},
    {"verbose", 'v', OPTION_FLAG, NULL, NULL, 0, 0, "say more"},
    {"exif", 0, OPTION_FLAG, NULL, "1", 0, 0, "turn images"},
    {0}};
static const option_table table = {"mipha annotate", "PATH...", "annotate images", NULL, rows, 0, 3};

static options o;
static err e;

/* Parses the words, which start after argv[0]. */
#define PARSE(...) parse((char *[]){"mipha", __VA_ARGS__, NULL})

static status parse(char **argv) {
    int argc = 0;
    while (argv[argc]) argc++;
    return options_parse(&o, &table, argc, argv, &e);
}

#define EXPECT_ERROR(want, ...)                                                                    \
    do {                                                                                           \
        assert_int_equal(PARSE(__VA_ARGS__), STATUS_BAD_ARGUMENT);                                 \
        assert_string_equal(e.text, want);                                                         \
    } while (0)

static int clean(void **state) {
    (void)state;
    options_deinit(&o);
    for (const option_row *row = rows; row->name; row++) {
        char name[64] = "MIPHA_";
        for (size_t i = 0; row->name[i]; i++)
            name[6 + i] = row->name[i] == '-' ? '_' : (char)(row->name[i] - 32);
        (void)unsetenv(name);
    }
    return 0;
}

static void without_arguments_every_option_has_its_default(void **state) {
    (void)state;
    const char *const *items;
    assert_int_equal(options_parse(&o, &table, 1, (char *[]){"mipha", NULL}, &e), STATUS_OK);
    assert_string_equal(options_string(&o, "model"), "models/demo");
    assert_null(options_string(&o, "broker"));
    assert_int_equal(options_int(&o, "max-new-tokens"), 64);
    assert_int_equal(options_int(&o, "offset"), 0);
    assert_true(options_real(&o, "temperature") == 0.5);
    assert_int_equal(options_bytes(&o, "kv-bytes"), 64 << 20);
    assert_false(options_flag(&o, "resume"));
    assert_true(options_flag(&o, "exif"));
    assert_int_equal(options_list(&o, "prompt", &items), 1);
    assert_string_equal(items[0], "Describe.");
    assert_false(options_is_set(&o, "model"));
    assert_int_equal(o.n_positional, 0);
}

static void every_way_of_writing_a_value_is_understood(void **state) {
    (void)state;
    assert_int_equal(PARSE("--model", "a", "--broker=b=c", "-n7", "--temperature", "1e-1", "-p",
                           "x", "-py", "--prompt=", "-rv", "--kv-bytes", "2k"),
                     STATUS_OK);
    const char *const *items;
    assert_string_equal(options_string(&o, "model"), "a");
    assert_string_equal(options_string(&o, "broker"), "b=c");
    assert_int_equal(options_int(&o, "max-new-tokens"), 7);
    assert_true(options_real(&o, "temperature") == 0.1);
    assert_int_equal(options_list(&o, "prompt", &items), 3);
    assert_string_equal(items[0], "x");
    assert_string_equal(items[1], "y");
    assert_string_equal(items[2], "");
    assert_true(options_flag(&o, "resume") && options_flag(&o, "verbose"));
    assert_int_equal(options_bytes(&o, "kv-bytes"), 2048);
    assert_true(options_is_set(&o, "model"));
}

static void flags_stand_between_words_and_two_dashes_end_them(void **state) {
    (void)state;
    assert_int_equal(PARSE("a", "-r", "-", "--", "--model"), STATUS_OK);
    assert_int_equal(o.n_positional, 3);
    assert_string_equal(o.positional[0], "a");
    assert_string_equal(o.positional[1], "-");
    assert_string_equal(o.positional[2], "--model");
    assert_true(options_flag(&o, "resume"));
}

static void a_value_may_begin_with_a_dash(void **state) {
    (void)state;
    assert_int_equal(PARSE("--offset", "-5", "-p", "--what?"), STATUS_OK);
    assert_int_equal(options_int(&o, "offset"), -5);
    const char *const *items;
    assert_int_equal(options_list(&o, "prompt", &items), 1);
    assert_string_equal(items[0], "--what?");
}

static void a_flag_can_be_turned_off(void **state) {
    (void)state;
    assert_int_equal(PARSE("--no-exif"), STATUS_OK);
    assert_false(options_flag(&o, "exif"));
    options_deinit(&o);
    assert_int_equal(PARSE("--exif=off", "--resume=yes"), STATUS_OK);
    assert_false(options_flag(&o, "exif"));
    assert_true(options_flag(&o, "resume"));
    options_deinit(&o);
    EXPECT_ERROR("unknown option --no-model; did you mean --model?", "--no-model");
    EXPECT_ERROR("unknown option --no-help; mipha annotate --help lists all", "--no-help");
}

static void the_last_of_a_repeated_scalar_counts(void **state) {
    (void)state;
    assert_int_equal(PARSE("--model", "a", "--model", "b", "-n", "1", "-n", "2"), STATUS_OK);
    assert_string_equal(options_string(&o, "model"), "b");
    assert_int_equal(options_int(&o, "max-new-tokens"), 2);
}

static void a_flag_wins_over_the_environment_and_that_over_the_default(void **state) {
    (void)state;
    (void)setenv("MIPHA_MODEL", "from-environment", 1);
    (void)setenv("MIPHA_MAX_NEW_TOKENS", "12", 1);
    (void)setenv("MIPHA_RESUME", "true", 1);
    (void)setenv("MIPHA_EXIF", "0", 1);
    (void)setenv("MIPHA_PROMPT", "one\n\ntwo\n", 1);
    (void)setenv("MIPHA_BROKER", "", 1);
    assert_int_equal(PARSE("-n", "5"), STATUS_OK);
    (void)setenv("MIPHA_MODEL", "changed later", 1);
    assert_string_equal(options_string(&o, "model"), "from-environment");
    assert_int_equal(options_int(&o, "max-new-tokens"), 5);
    assert_true(options_flag(&o, "resume"));
    assert_false(options_flag(&o, "exif"));
    assert_null(options_string(&o, "broker"));
    assert_true(options_is_set(&o, "model"));
    assert_false(options_is_set(&o, "broker"));
    assert_true(options_is_typed(&o, "max-new-tokens"));
    assert_false(options_is_typed(&o, "model"));
    const char *const *items;
    assert_int_equal(options_list(&o, "prompt", &items), 2);
    assert_string_equal(items[0], "one");
    assert_string_equal(items[1], "two");
    options_deinit(&o);
    assert_int_equal(PARSE("-p", "flag"), STATUS_OK);
    assert_int_equal(options_list(&o, "prompt", &items), 1);
    assert_string_equal(items[0], "flag");
}

static void a_wrong_variable_is_named_unless_a_flag_overrides_it(void **state) {
    (void)state;
    (void)setenv("MIPHA_MAX_NEW_TOKENS", "5000", 1);
    EXPECT_ERROR("MIPHA_MAX_NEW_TOKENS: 5000 is above the maximum 4096", "a");
    assert_int_equal(PARSE("-n", "5"), STATUS_OK);
    options_deinit(&o);
    assert_int_equal(PARSE("--help"), STATUS_OK);
    assert_true(o.wants_help);
}

static void numbers_out_of_range_name_the_option_and_the_limit(void **state) {
    (void)state;
    EXPECT_ERROR("--max-new-tokens: 0 is below the minimum 1", "--max-new-tokens", "0");
    EXPECT_ERROR("-n: 4097 is above the maximum 4096", "-n4097");
    EXPECT_ERROR("--max-new-tokens: 99999999999999999999 is above the maximum 4096",
                 "--max-new-tokens=99999999999999999999");
    EXPECT_ERROR("--offset: -99999999999999999999 is below the minimum -9e+18", "--offset",
                 "-99999999999999999999");
    EXPECT_ERROR("--temperature: 10.5 is above the maximum 10", "--temperature", "10.5");
    EXPECT_ERROR("--temperature: -0.1 is below the minimum 0", "--temperature", "-0.1");
    EXPECT_ERROR("--temperature: 1e999 is above the maximum 10", "--temperature", "1e999");
    EXPECT_ERROR("--kv-bytes: 1023 is below the minimum 1K", "--kv-bytes", "1023");
    EXPECT_ERROR("--kv-bytes: 1025G is above the maximum 1024G", "--kv-bytes", "1025G");
    EXPECT_ERROR("--kv-bytes: 99999999999999G is above the maximum 1024G", "--kv-bytes",
                 "99999999999999G");
    assert_int_equal(PARSE("--kv-bytes", "1024G", "-n", "4096", "--temperature", "10"), STATUS_OK);
}

static void what_is_not_a_number_is_refused(void **state) {
    (void)state;
    static char *const words[] = {"", " 1", "1 ", "0x10", "1.5", "ten", "+", "-", "1e3", "--1"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        assert_int_equal(PARSE("--max-new-tokens", words[i]), STATUS_BAD_ARGUMENT);
        assert_non_null(strstr(e.text, "is not a whole number"));
    }
    static char *const reals[] = {"", " 1", "1 ", "nan", "inf", "0x1", "1e", "1,5", "."};
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++) {
        assert_int_equal(PARSE("--temperature", reals[i]), STATUS_BAD_ARGUMENT);
        assert_non_null(strstr(e.text, "is not a number"));
    }
    static char *const sizes[] = {"", "K", "-1", "+1K", "1.5G", "1KB", "64 M", "1T", " 2K"};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        assert_int_equal(PARSE("--kv-bytes", sizes[i]), STATUS_BAD_ARGUMENT);
        assert_non_null(strstr(e.text, "is not a size"));
    }
    EXPECT_ERROR("--exif: \"perhaps\" is neither yes nor no; write 1 or 0", "--exif=perhaps");
}

static void a_misspelt_option_gets_a_suggestion(void **state) {
    (void)state;
    EXPECT_ERROR("unknown option --modle; did you mean --model?", "--modle", "x");
    EXPECT_ERROR("unknown option --max-tokens; mipha annotate --help lists all", "--max-tokens");
    EXPECT_ERROR("unknown option --max; did you mean --max-new-tokens?", "--max=3");
    EXPECT_ERROR("unknown option --max-new-tokn; did you mean --max-new-tokens?",
                 "--max-new-tokn");
    EXPECT_ERROR("unknown option --hepl; did you mean --help?", "--hepl");
    EXPECT_ERROR("unknown option --zzzz; mipha annotate --help lists all", "--zzzz");
    EXPECT_ERROR("unknown option -x; mipha annotate --help lists all", "-rx");
}

static void a_value_is_needed_where_one_belongs(void **state) {
    (void)state;
    EXPECT_ERROR("--model needs a value DIR", "--model");
    EXPECT_ERROR("-n needs a value N", "-rn");
    EXPECT_ERROR("--help takes no value", "--help=x");
}

static void too_few_and_too_many_words_are_refused(void **state) {
    (void)state;
    EXPECT_ERROR("unexpected argument \"d\"; mipha annotate takes at most 3", "a", "b", "c", "d");
    static option_table needs; /* outlives the test: it is still asked for when options are released */
    needs = table;
    needs.positional_min = 1;
    assert_int_equal(options_parse(&o, &needs, 1, (char *[]){"mipha", NULL}, &e),
                     STATUS_BAD_ARGUMENT);
    assert_string_equal(e.text, "needs PATH...: 0 given, 1 needed");
    needs.positional_min = 0;
    needs.positional_max = 0;
    assert_int_equal(options_parse(&o, &needs, 2, (char *[]){"mipha", "a", NULL}, &e),
                     STATUS_BAD_ARGUMENT);
    assert_string_equal(e.text, "unexpected argument \"a\"; mipha annotate takes options only");
}

static void help_and_version_are_seen_before_what_is_missing(void **state) {
    (void)state;
    static option_table needs; /* outlives the test: it is still asked for when options are released */
    needs = table;
    needs.positional_min = 1;
    assert_int_equal(options_parse(&o, &needs, 2, (char *[]){"mipha", "-h", NULL}, &e), STATUS_OK);
    assert_true(o.wants_help && !o.wants_version);
    options_deinit(&o);
    assert_int_equal(options_parse(&o, &needs, 3, (char *[]){"mipha", "--version", "--x", NULL}, &e),
                     STATUS_OK);
    assert_true(o.wants_version);
}

static void control_bytes_of_a_word_do_not_reach_the_terminal(void **state) {
    (void)state;
    EXPECT_ERROR("unknown option --\?[31m; mipha annotate --help lists all", "--\033[31m");
}

static void very_long_names_are_refused_calmly(void **state) {
    (void)state;
    char *name = malloc(100001);
    assert_non_null(name);
    memset(name, 'm', 100000);
    name[0] = name[1] = '-';
    name[100000] = '\0';
    assert_int_equal(PARSE(name), STATUS_BAD_ARGUMENT);
    free(name);
}

int main(void) {
#define TEST(f) cmocka_unit_test_teardown(f, clean)
    const struct CMUnitTest tests[] = {
        TEST(without_arguments_every_option_has_its_default),
        TEST(every_way_of_writing_a_value_is_understood),
        TEST(flags_stand_between_words_and_two_dashes_end_them),
        TEST(a_value_may_begin_with_a_dash),
        TEST(a_flag_can_be_turned_off),
        TEST(the_last_of_a_repeated_scalar_counts),
        TEST(a_flag_wins_over_the_environment_and_that_over_the_default),
        TEST(a_wrong_variable_is_named_unless_a_flag_overrides_it),
        TEST(numbers_out_of_range_name_the_option_and_the_limit),
        TEST(what_is_not_a_number_is_refused),
        TEST(a_misspelt_option_gets_a_suggestion),
        TEST(a_value_is_needed_where_one_belongs),
        TEST(too_few_and_too_many_words_are_refused),
        TEST(help_and_version_are_seen_before_what_is_missing),
        TEST(control_bytes_of_a_word_do_not_reach_the_terminal),
        TEST(very_long_names_are_refused_calmly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
