/* Answers and scores worked out by hand from the rules of the reference, the ugly ones included. */
#include "tests/support/support.h"

#include <math.h>
#include <string.h>

#include "eval/answer_text.h"
#include "eval/scores.h"

static void normalises(const char *text, const char *want) {
    buf out;
    buf_init(&out, 1 << 16);
    assert_int_equal(answer_text_normalise(&out, text), STATUS_OK);
    if (strcmp((const char *)out.data, want) != 0)
        fail_msg("\"%s\" became \"%s\", want \"%s\"", text, (const char *)out.data, want);
    buf_deinit(&out);
}

static void answers_are_normalised_as_the_evalai_processor_does(void **state) {
    (void)state;
    normalises("Two dogs.", "2 dogs");
    normalises("", "");
    normalises("  The   cat ", "cat");
    normalises("1,000", "1000");          /* commas go first, so no digits are apart */
    normalises("none", "0");
    normalises("an apple, a pear and the ten", "apple pear and 10");
    normalises("dont", "don't");
    normalises("Im", "im");               /* its key has a capital letter and never matches */
    normalises("John's hat", "john 's hat");
    normalises("what?", "what");
    normalises("red/blue", "red blue");   /* no slash stands at a space: it becomes one */
    normalises("red / blue-green", "red blue green");
    normalises("red /blue/green", "red bluegreen"); /* one of them stands at a space: all are deleted */
    normalises("3.", "3");                /* a period not followed by a digit goes */
    normalises("3.5", "3.5");
    normalises("v1.2.", "v1.2");
    normalises("a.b.c", "abc");
    normalises("(left)", "left");
    normalises("yes!", "yes");
    normalises("no\nway\tout", "no way out");
    normalises("somebody'd", "somebodyd");
    normalises("let's", "let 's");        /* "'s" was put apart before */
    /* the 33rd period stays */
    normalises("x................................", "x");
    normalises("x.................................", "x.");
}

static void vqa_accuracy_leaves_one_out(void **state) {
    (void)state;
    static const double want[] = {0.0, 0.3, 0.6, 0.9, 1.0, 1.0};
    for (size_t n = 0; n < 6; n++) {
        const char *people[10];
        for (size_t i = 0; i < 10; i++) people[i] = i < n ? "cat" : i % 2 ? "dog" : "cow";
        assert_true(fabs(score_vqa("cat", people, 10) - want[n]) < 1e-12);
    }
    assert_true(score_vqa("cat", NULL, 0) == 0.0);
}

static void gqa_compares_strings(void **state) {
    (void)state;
    assert_true(score_gqa("Yes.", "yes"));
    assert_true(score_gqa("yes...", "yes"));
    assert_false(score_gqa("yes, it is", "yes"));
    assert_false(score_gqa("ye", "yes"));
    assert_false(score_gqa("yes .", "yes")); /* only periods go */
    assert_true(score_gqa("", ""));
}

static void pope_reads_words_before_the_first_period(void **state) {
    (void)state;
    assert_false(score_pope_says_yes("No"));
    assert_false(score_pope_says_yes("no, there is none"));
    assert_false(score_pope_says_yes("There is not one."));
    assert_true(score_pope_says_yes("NO"));          /* case counts */
    assert_true(score_pope_says_yes("no\nway"));     /* only spaces part words */
    assert_true(score_pope_says_yes("Yes. There is no dog"));
    assert_true(score_pope_says_yes("nothing"));
    assert_true(score_pope_says_yes("None"));
    assert_true(score_pope_says_yes(""));
    assert_false(score_pope_says_yes("Well, no"));
    assert_true(score_pope_says_yes("a,no")); /* a comma just goes: "ano" */
}

static void pope_rates_come_from_the_four_counts(void **state) {
    (void)state;
    score_pope_counts c = {.true_yes = 6, .false_yes = 2, .true_no = 8, .false_no = 4};
    score_pope_rates r = score_pope(&c);
    assert_true(fabs(r.accuracy - 0.7) < 1e-12);
    assert_true(fabs(r.precision - 0.75) < 1e-12);
    assert_true(fabs(r.recall - 0.6) < 1e-12);
    assert_true(fabs(r.f1 - 2 * 0.75 * 0.6 / 1.35) < 1e-12);
    assert_true(fabs(r.yes_ratio - 0.4) < 1e-12);
    score_pope_counts none = {0};
    assert_true(score_pope(&none).f1 == 0.0);
}

static void mme_looks_at_four_letters(void **state) {
    (void)state;
    assert_int_equal(score_mme("Yes"), SCORE_MME_YES);
    assert_int_equal(score_mme("yes, it is"), SCORE_MME_YES);
    assert_int_equal(score_mme("NO"), SCORE_MME_NO);
    assert_int_equal(score_mme("Not sure"), SCORE_MME_NO);
    assert_int_equal(score_mme("a no"), SCORE_MME_NO);
    assert_int_equal(score_mme("I say yes"), SCORE_MME_OTHER);
    assert_int_equal(score_mme(""), SCORE_MME_OTHER);
    assert_int_equal(score_mme("maybe no"), SCORE_MME_OTHER);
}

static void science_qa_reads_a_letter_three_ways(void **state) {
    (void)state;
    assert_int_equal(score_science_qa("B", 4), 1);
    assert_int_equal(score_science_qa("C. because", 4), 2);
    assert_int_equal(score_science_qa("The answer is D.", 4), 3);
    assert_int_equal(score_science_qa("So: The answer is A! Yes", 4), 0);
    assert_int_equal(score_science_qa("The answer is A. The answer is B.", 4), -1);
    assert_int_equal(score_science_qa("E", 4), -1); /* there is no fifth choice */
    assert_int_equal(score_science_qa("Because", 4), -1);
    assert_int_equal(score_science_qa("B.", 4), -1); /* too short for the second way */
    assert_int_equal(score_science_qa("", 4), -1);
    assert_int_equal(score_science_qa("The answer is A", 4), -1); /* nothing behind the letter */
}

static void mmmu_takes_the_sign_that_stands_furthest_right(void **state) {
    (void)state;
    static const char *const options[] = {"a red box", "a blue ball", "nothing"};
    assert_int_equal(score_mmmu_choice("B", options, 3), 1);
    assert_int_equal(score_mmmu_choice("(A) is wrong, so (C).", options, 3), 2);
    assert_int_equal(score_mmmu_choice("A or B ?", options, 3), 1);
    assert_int_equal(score_mmmu_choice("'A'", options, 3), 0);
    assert_int_equal(score_mmmu_choice("I think that this is a BLUE ball", options, 3), 1);
    assert_int_equal(score_mmmu_choice("I think that this is A BLUE ball", options, 3), 0); /* the word A counts first */
    assert_int_equal(score_mmmu_choice("a blue ball", options, 3), -1); /* not more than five words */
    assert_int_equal(score_mmmu_choice("dunno", options, 3), -1);
    assert_int_equal(score_mmmu_choice(" C", options, 3), 2); /* spaces are not stripped and part the letter */
}

static void open_says(const char *said, const char *gold, bool want) {
    bool is_right = !want;
    assert_int_equal(score_mmmu_open(&is_right, said, &gold, 1), STATUS_OK);
    if (is_right != want) fail_msg("\"%s\" against \"%s\" is %d", said, gold, is_right);
}

static void mmmu_open_answers_are_read_after_words_of_conclusion(void **state) {
    (void)state;
    open_says("The answer is 12.", "12", true);
    open_says("12.", "12.0", true);
    open_says("So it could be a red fox.", "fox", true);
    open_says("x = 3, y = 4", "4", true);                /* the shortest tail */
    open_says("x = 3\ny is 4", "3", false);              /* "=" counts in the last line only */
    open_says("a fox\nTherefore nothing", "fox", false); /* a line without such a word is left out */
    open_says("1,234.5", "1234.5", true);
    open_says("about 1,234 metres", "1234", true);
    open_says("2.5e3", "2500", true);
    open_says("3.14159", "3.14", true);                  /* two decimals */
    open_says("A", "A", true);                           /* one letter must stand at a space */
    open_says("cat", "a", false);
    open_says("it is a cat", "a", true);
    open_says("", "cat", false);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(mmmu_open_answers_are_read_after_words_of_conclusion),
                                       
        cmocka_unit_test(answers_are_normalised_as_the_evalai_processor_does),
        cmocka_unit_test(vqa_accuracy_leaves_one_out),
        cmocka_unit_test(gqa_compares_strings),
        cmocka_unit_test(pope_reads_words_before_the_first_period),
        cmocka_unit_test(pope_rates_come_from_the_four_counts),
        cmocka_unit_test(mme_looks_at_four_letters),
        cmocka_unit_test(science_qa_reads_a_letter_three_ways),
        cmocka_unit_test(mmmu_takes_the_sign_that_stands_furthest_right),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
