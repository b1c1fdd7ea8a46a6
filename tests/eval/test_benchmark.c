/* Benchmarks in miniature: their official files as few lines, answers put in by hand, scores worked out by hand. */
#include "tests/support/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "eval/benchmark.h"
#include "eval/tsv.h"

#define SHORT "\\nAnswer the question using a single word or phrase."

typedef struct {
    char *data, *out;
    const benchmark *bench;
    eval_items items;
    eval_report report;
    err e;
} fixture;

static int setup(void **state) {
    fixture *f = calloc(1, sizeof *f);
    f->data = temp_dir_make();
    f->out = temp_dir_make();
    *state = f;
    return 0;
}

static int teardown(void **state) {
    fixture *f = *state;
    eval_items_deinit(&f->items);
    temp_dir_remove(f->data);
    temp_dir_remove(f->out);
    free(f);
    return 0;
}

/* Folders on the way are made. */
static void put(fixture *f, const char *name, const char *text) {
    char *path = path_join(f->data, name);
    for (char *slash = path + strlen(f->data) + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = '\0';
        (void)mkdir(path, 0777);
        *slash = '/';
    }
    file_write(path, text, strlen(text));
    free(path);
}

static void read_it(fixture *f, const char *name, size_t n) {
    f->bench = benchmark_find(name);
    assert_non_null(f->bench);
    if (f->bench->read(&f->items, f->data, &f->e) != STATUS_OK) fail_msg("%s", f->e.text);
    assert_int_equal(f->items.n, n);
}

/* NULL: no answer came. */
static void finish_with(fixture *f, const char *const *answers) {
    for (size_t i = 0; i < f->items.n; i++)
        if (!f->items.items[i].answer && answers[i]) f->items.items[i].answer = strdup(answers[i]);
    if (f->bench->finish(&f->items, f->data, f->out, &f->report, &f->e) != STATUS_OK) fail_msg("%s", f->e.text);
}
#define FINISH(f, ...) finish_with(f, (const char *const[]){__VA_ARGS__})

static void scores(const fixture *f, const char *label, double want) {
    for (size_t i = 0; i < f->report.n; i++) {
        if (strcmp(f->report.rows[i].label, label) != 0) continue;
        if (fabs(f->report.rows[i].value - want) > 1e-9)
            fail_msg("%s is %g, want %g", label, f->report.rows[i].value, want);
        return;
    }
    fail_msg("no row \"%s\"", label);
}

static void wrote(const fixture *f, const char *name, const char *want) {
    char *path = path_join(f->out, name);
    buf text;
    buf_init(&text, 1 << 20);
    assert_true(file_read(&text, path));
    size_t n = strlen(want), at = 0;
    while (at + n <= text.len_bytes && memcmp(text.data + at, want, n) != 0) at++;
    if (at + n > text.len_bytes)
        fail_msg("%s has no %s but is\n%s", name, want, (const char *)text.data);
    buf_deinit(&text);
    free(path);
}

static void asks(const fixture *f, size_t i, const char *prompt, const char *image) {
    assert_string_equal(f->items.items[i].prompt, prompt);
    if (!image) assert_null(f->items.items[i].image);
    else assert_string_equal(f->items.items[i].image + (image[0] == '/' ? strlen(f->data) : 0), image);
}

/* ---- promises ------------------------------------------------------------------------------------ */

static void vqav2_is_scored_on_val_and_uploaded_on_test(void **state) {
    fixture *f = *state;
    put(f, "val2014/x", "");
    put(f, "llava_vqav2_mscoco_val2014.jsonl",
        "{\"question_id\": 7, \"image\": \"a.jpg\", \"text\": \"How many?" SHORT "\", \"category\": \"default\"}\n"
        "{\"question_id\": 8, \"image\": \"b.jpg\", \"text\": \"What?" SHORT "\", \"category\": \"default\"}\n");
    /* Two of ten say 2, each sees one or two others: 0.6. */
    put(f, "v2_mscoco_val2014_annotations.json",
        "{\"annotations\": [{\"question_id\": 7, \"answers\": [{\"answer\": \"two\"}, {\"answer\": \"2\"}, {\"answer\": \"3\"},"
        "{\"answer\": \"3\"}, {\"answer\": \"3\"}, {\"answer\": \"4\"}, {\"answer\": \"5\"}, {\"answer\": \"6\"},"
        "{\"answer\": \"7\"}, {\"answer\": \"8\"}]}, {\"question_id\": 8, \"answers\": [{\"answer\": \"cat\"}]},"
        "{\"question_id\": 9, \"answers\": []}]}");
    read_it(f, "vqav2", 2);
    asks(f, 0, "How many?\nAnswer the question using a single word or phrase.", "/val2014/a.jpg");
    FINISH(f, "Two.", "a dog");
    scores(f, "accuracy", 30.0);
    wrote(f, "vqav2_upload.json", "[{\"question_id\": 7, \"answer\": \"2\"}, {\"question_id\": 8, \"answer\": \"dog\"}]");
    wrote(f, "answers.jsonl", "{\"question_id\": 7, \"prompt\": \"How many?" SHORT "\", \"text\": \"Two.\", ");
}

static void gqa_counts_over_all_balanced_questions(void **state) {
    fixture *f = *state;
    put(f, "llava_gqa_testdev_balanced.jsonl",
        "{\"question_id\": \"1\", \"image\": \"a.jpg\", \"text\": \"q\", \"category\": \"d\"}\n"
        "{\"question_id\": \"2\", \"image\": \"a.jpg\", \"text\": \"q\", \"category\": \"d\"}\n"
        "{\"question_id\": \"3\", \"image\": \"a.jpg\", \"text\": \"q\", \"category\": \"d\"}\n");
    put(f, "data/testdev_balanced_questions.json", "{\"1\": {\"answer\": \"yes\"}, \"2\": {\"answer\": \"red\"},"
        "\"3\": {\"answer\": \"dog\"}, \"4\": {\"answer\": \"cat\"}}");
    read_it(f, "gqa", 3);
    FINISH(f, "Yes..", "dark red", "dog");
    scores(f, "accuracy", 50.0);
    wrote(f, "testdev_balanced_predictions.json", "{\"questionId\": \"1\", \"prediction\": \"yes\"}");
}

static void vizwiz_is_uploaded_by_image(void **state) {
    fixture *f = *state;
    put(f, "llava_test.jsonl", "{\"question_id\": 1, \"image\": \"v.jpg\", \"text\": \"q\", \"category\": \"d\"}\n");
    read_it(f, "vizwiz", 1);
    asks(f, 0, "q", "/test/v.jpg");
    FINISH(f, "The Answers!");
    wrote(f, "vizwiz_upload.json", "[{\"image\": \"v.jpg\", \"answer\": \"answers\"}]");
}

static void textvqa_pairs_answers_by_image_and_question(void **state) {
    fixture *f = *state;
    put(f, "llava_textvqa_val_v051_ocr.jsonl",
        "{\"question_id\": \"i1\", \"image\": \"i1.jpg\", \"text\": \"What is IT?\\nReference OCR token: A, B" SHORT "\"}\n"
        "{\"question_id\": \"i1\", \"image\": \"i1.jpg\", \"text\": \"Who?" SHORT "\"}\n");
    put(f, "TextVQA_0.5.1_val.json", "{\"data\": [{\"image_id\": \"i1\", \"question\": \"what is it?\", \"answers\":"
        "[\"a b\", \"b\", \"b\", \"b\", \"b\", \"c\", \"d\", \"e\", \"f\", \"g\"]},"
        "{\"image_id\": \"i1\", \"question\": \"who?\", \"answers\": [\"x\", \"x\", \"x\", \"1\", \"2\", \"3\", \"4\", \"5\","
        "\"6\", \"7\"]}]}");
    read_it(f, "textvqa", 2);
    FINISH(f, "The B", "X"); /* four of ten: 1; three of ten: 0.9 */
    scores(f, "accuracy", 95.0);
}

static void pope_pairs_by_order_and_reports_f1(void **state) {
    fixture *f = *state;
    char questions[2048] = "";
    for (int i = 0; i < 6; i++) {
        size_t n = strlen(questions);
        (void)snprintf(questions + n, sizeof questions - n,
                       "{\"question_id\": %d, \"image\": \"a.jpg\", \"text\": \"q\", \"category\": \"%s\"}\n", i,
                       i < 4 ? "adversarial" : i == 4 ? "popular" : "random");
    }
    put(f, "llava_pope_test.jsonl", questions);
    put(f, "coco/coco_pope_adversarial.json", "{\"label\": \"yes\"}\n{\"label\": \"no\"}\n{\"label\": \"yes\"}\n{\"label\": \"no\"}\n");
    put(f, "coco/coco_pope_popular.json", "{\"label\": \"yes\"}\n");
    put(f, "coco/coco_pope_random.json", "{\"label\": \"no\"}\n");
    read_it(f, "pope", 6);
    /* "NO" and "nothing" are yes; only what stands before the first period counts. */
    FINISH(f, "Yes, there is.", "No, not at all.", "There is not. Yes", "NO", "nothing", "yes");
    scores(f, "adversarial accuracy", 50.0);
    scores(f, "adversarial precision", 50.0);
    scores(f, "adversarial recall", 50.0);
    scores(f, "adversarial F1", 50.0);
    scores(f, "adversarial says yes", 50.0);
    scores(f, "popular F1", 100.0);
    scores(f, "random F1", 0.0);
    scores(f, "mean F1", 50.0);
}

static void pope_with_too_few_labels_is_refused(void **state) {
    fixture *f = *state;
    put(f, "llava_pope_test.jsonl", "{\"question_id\": 0, \"image\": \"a.jpg\", \"text\": \"q\", \"category\": \"adversarial\"}\n");
    put(f, "coco/coco_pope_adversarial.json", "{\"label\": \"yes\"}\n{\"label\": \"no\"}\n");
    read_it(f, "pope", 1);
    assert_int_equal(f->bench->finish(&f->items, f->data, f->out, &f->report, &f->e), STATUS_BAD_FORMAT);
    assert_non_null(strstr(f->e.text, "has 2 labels, expected 1"));
}

static void mme_counts_questions_and_images(void **state) {
    fixture *f = *state;
    put(f, "llava_mme.jsonl",
        "{\"question_id\": \"count/1.png\", \"image\": \"count/1.png\", \"category\": \"count\", \"text\": \"Two? Please answer yes or no." SHORT "\"}\n"
        "{\"question_id\": \"count/1.png\", \"image\": \"count/1.png\", \"category\": \"count\", \"text\": \"Three? Please answer yes or no." SHORT "\"}\n"
        "{\"question_id\": \"count/2.png\", \"image\": \"count/2.png\", \"category\": \"count\", \"text\": \"Four?" SHORT "\"}\n"
        "{\"question_id\": \"count/2.png\", \"image\": \"count/2.png\", \"category\": \"count\", \"text\": \"Five?" SHORT "\"}\n"
        "{\"question_id\": \"code_reasoning/3.png\", \"image\": \"code_reasoning/3.png\", \"category\": \"code_reasoning\", \"text\": \"A?" SHORT "\"}\n"
        "{\"question_id\": \"code_reasoning/3.png\", \"image\": \"code_reasoning/3.png\", \"category\": \"code_reasoning\", \"text\": \"B?" SHORT "\"}\n");
    put(f, "MME_Benchmark_release_version/count/questions_answers_YN/1.txt",
        "Two? Please answer yes or no.\tYes\nThree? Please answer yes or no.\tNo\n");
    put(f, "MME_Benchmark_release_version/count/2.txt",
        "Four? Please answer yes or no.\tYes\r\nFive?  Please answer yes or no.\tNo\r\n");
    put(f, "MME_Benchmark_release_version/code_reasoning/3.txt",
        "A? Please answer yes or no.\tYes\nB? Please answer yes or no.\tNo\n");
    read_it(f, "mme", 6);
    FINISH(f, "Yes", "no, three", "Yes.", "maybe no", "Yes", "yes");
    /* count: 3 of 4 and 1 of 2; code: 1 of 2 and none */
    scores(f, "count", 75.0 + 50.0);
    scores(f, "perception", 125.0);
    scores(f, "code_reasoning", 50.0);
    scores(f, "cognition", 50.0);
    wrote(f, "count.txt", "2.txt\tFive?  Please answer yes or no.\tNo\tmaybe no\n");
}

static void scienceqa_counts_what_was_not_answered_as_wrong(void **state) {
    fixture *f = *state;
    put(f, "llava_test_CQM-A.json",
        "[{\"id\": \"4\", \"image\": \"4/image.png\", \"conversations\": [{\"from\": \"human\", \"value\": \"<image>\\nContext: c\\nq\\nA. x\\nB. y\"}, {\"from\": \"gpt\", \"value\": \"A\"}]},"
        " {\"id\": \"5\", \"conversations\": [{\"from\": \"human\", \"value\": \"q\\nA. x\\nB. y\"}]},"
        " {\"id\": \"6\", \"image\": \"6/image.png\", \"conversations\": [{\"from\": \"human\", \"value\": \"<image>\\nq\"}]}]");
    put(f, "problems.json", "{\"4\": {\"choices\": [\"x\", \"y\"], \"answer\": 1}, \"5\": {\"choices\": [\"x\", \"y\"], \"answer\": 0},"
        "\"6\": {\"choices\": [\"x\"], \"answer\": 0}, \"7\": {\"choices\": [\"x\"], \"answer\": 0}}");
    put(f, "pid_splits.json", "{\"test\": [\"4\", \"5\", \"6\", \"7\"]}");
    read_it(f, "scienceqa", 3);
    asks(f, 0, "Context: c\nq\nA. x\nB. y\nAnswer with the option's letter from the given choices directly.", "/images/test/4/image.png");
    asks(f, 1, "q\nA. x\nB. y\nAnswer with the option's letter from the given choices directly.", NULL);
    FINISH(f, "B. y", "The answer is A.", "E"); /* the third names a choice that is not there */
    scores(f, "accuracy", 50.0);
    scores(f, "accuracy with an image", 50.0);
    wrote(f, "answers.jsonl", "\"prompt\": \"<image>\\nContext: c");
}

static void seed_reports_types_images_and_videos(void **state) {
    fixture *f = *state;
    put(f, "llava-seed-bench.jsonl",
        "{\"question_id\": 1, \"image\": \"SEED-Bench-image/1\", \"text\": \"q\", \"category\": \"c\"}\n"
        "{\"question_id\": \"v2\", \"image\": \"SEED-Bench-video-image/2.png\", \"text\": \"q\", \"category\": \"c\"}\n");
    put(f, "SEED-Bench.json", "{\"question_type\": {\"Counting\": 5, \"Action\": 9}, \"questions\": ["
        "{\"question_id\": \"1\", \"question_type_id\": 5, \"data_type\": \"image\", \"answer\": \"B\"},"
        "{\"question_id\": \"3\", \"question_type_id\": 5, \"data_type\": \"image\", \"answer\": \"B\"},"
        "{\"question_id\": \"v2\", \"question_type_id\": 9, \"data_type\": \"video\", \"answer\": \"C\"}]}");
    read_it(f, "seed", 2);
    FINISH(f, "B", "C.");
    scores(f, "Counting", 50.0);
    scores(f, "Action", 0.0);
    scores(f, "total", 100.0 / 3);
    scores(f, "images", 50.0);
    scores(f, "videos", 0.0);
    wrote(f, "seed_upload.jsonl", "{\"question_id\": \"1\", \"prediction\": \"B\"}\n");
}

static void mmvet_is_uploaded_by_number(void **state) {
    fixture *f = *state;
    put(f, "llava-mm-vet.jsonl", "{\"question_id\": 0, \"image\": \"v1_0.png\", \"text\": \"What is x?\", \"category\": \"d\"}\n");
    read_it(f, "mmvet", 1);
    FINISH(f, "x = 1\n\xc3\xa9");
    wrote(f, "mmvet_upload.json", "\"v1_0\": \"x = 1\\n\\u00E9\"");
}

static void mmbench_reads_pictures_from_its_table_and_writes_a_workbook(void **state) {
    fixture *f = *state;
    put(f, "mmbench_dev_20230712.tsv",
        "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsplit\n"
        "241\tWhich?\t\"A \"\"hint\"\"\non two lines\"\tup\tdown\tNone\tleft\tB\tcat\t/9j/AAA=\tdev\n"
        "1000252\tWhat < that?\tnan\ta\tb\tc\td\tA\tcat\t/9j/BBB=\tdev\n");
    read_it(f, "mmbench", 2);
    asks(f, 0, "A \"hint\"\non two lines\nWhich?\nA. up\nB. down\nAnswer with the option's letter from the given choices directly.",
         "data:image/jpeg;base64,/9j/AAA=");
    asks(f, 1, "What < that?\nA. a\nB. b\nC. c\nD. d\nAnswer with the option's letter from the given choices directly.",
         "data:image/jpeg;base64,/9j/BBB=");
    FINISH(f, "B", "C");
    scores(f, "right first letters", 50.0);
    wrote(f, "answers.jsonl", "\"prompt\": \"A \\\"hint\\\"\\non two lines\\nWhich?\\nA. up\\nB. down\", \"text\": \"B\"");
    wrote(f, "answers.jsonl", "\"round_id\": 0, \"options\": [\"up\", \"down\"], \"option_char\": [\"A\", \"B\"]");
#define T(text) "<c t=\"inlineStr\"><is><t xml:space=\"preserve\">" text "</t></is></c>"
    wrote(f, "mmbench_upload.xlsx", "<row>" T("index") T("question") T("A") T("B") T("C") T("D") T("prediction")
          T("answer") T("split") "</row><row><c><v>241</v></c>" T("Which?") T("up") T("down") "<c/>" T("left") T("B") T("B")
          T("dev") "</row><row><c><v>1000252</v></c>" T("What &lt; that?"));
}

static void a_broken_table_is_refused_with_its_row(void **state) {
    fixture *f = *state;
    static const struct {
        const char *text, *want;
    } cases[] = {
        {"index\tquestion\timage\n1\tq\ti\tx\n", "row 2: has 4 fields, expected at most 3"},
        {"index\tquestion\timage\n1\t\"q\ti\n", "row 2: a quote does not end"},
        {"index\tquestion\timage\n1\tq\n", "row 2: has not all of index, question and image"},
        {"index\tquestion\timage\n1\tq\xff\ti\n", "row 2: column 2 is not UTF-8"}};
    f->bench = benchmark_find("mmbench");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put(f, "mmbench_dev_20230712.tsv", cases[i].text);
        assert_int_equal(f->bench->read(&f->items, f->data, &f->e), STATUS_BAD_FORMAT);
        if (!strstr(f->e.text, cases[i].want)) fail_msg("\"%s\" has no \"%s\"", f->e.text, cases[i].want);
    }
    put(f, "mmbench_dev_20230712.tsv", "index\tquestion\timage\n1\tq\t\"i\""); /* ends with its last quote */
    read_it(f, "mmbench", 1);
    asks(f, 0, "q\nAnswer with the option's letter from the given choices directly.", "data:image/jpeg;base64,i");
}

static void mmmu_scores_choices_and_open_answers_by_subject(void **state) {
    fixture *f = *state;
    put(f, "mmmu.jsonl",
        "{\"id\": \"validation_Art_Theory_1\", \"question\": \"Who <image 1>?\", \"question_type\": \"multiple-choice\", \"options\": [\"Goya\", \"Dali\"], \"answer\": \"B\", \"image\": \"images/1.png\"}\n"
        "{\"id\": \"validation_Math_2\", \"question\": \"Sum?\", \"question_type\": \"open\", \"options\": [], \"answer\": [\"1.50\", \"three halves\"], \"image\": \"images/2.png\"}\n"
        "{\"id\": \"validation_Math_3\", \"question\": \"Which?\", \"question_type\": \"multiple-choice\", \"options\": [\"<img='a'>\", \"<img='b'>\"], \"answer\": \"C\", \"image\": \"images/3.png\"}\n");
    read_it(f, "mmmu", 3);
    asks(f, 0, "Who <image 1>?\n(A) Goya\n(B) Dali\n\nAnswer with the option's letter from the given choices directly.", "/images/1.png");
    asks(f, 1, "Sum?\nAnswer the question using a single word or phrase.", "/images/2.png");
    assert_non_null(f->items.items[2].answer); /* not asked */
    FINISH(f, "(A) or (B).", "The answer is 1.5", NULL);
    scores(f, "  Art_Theory", 100.0);
    scores(f, "  Math", 50.0);
    scores(f, "Science", 50.0);
    scores(f, "overall", 200.0 / 3);
    wrote(f, "mmmu_output.json", "\"validation_Art_Theory_1\": \"B\"");
    wrote(f, "mmmu_output.json", "\"validation_Math_2\": \"The answer is 1.5\"");
    assert_non_null(strstr(f->report.note, "1 letter was drawn by lot"));
}

static void questions_that_are_not_there_are_named(void **state) {
    fixture *f = *state;
    for (const benchmark *b = benchmarks; b->name; b++) {
        assert_int_equal(b->read(&f->items, f->data, &f->e), STATUS_IO);
        assert_non_null(strstr(f->e.text, f->data));
    }
    put(f, "llava_test.jsonl", "{\"question_id\": 1, \"image\": \"v.jpg\", \"text\": \"q\"}\n{\"question_id\": 2,\n");
    assert_int_equal(benchmark_find("vizwiz")->read(&f->items, f->data, &f->e), STATUS_BAD_FORMAT);
    assert_non_null(strstr(f->e.text, "llava_test.jsonl line 2: not a line of JSON"));
    assert_null(benchmark_find("nothing"));
}

int main(void) {
#define EACH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {EACH(vqav2_is_scored_on_val_and_uploaded_on_test),
                                       EACH(gqa_counts_over_all_balanced_questions),
                                       EACH(vizwiz_is_uploaded_by_image),
                                       EACH(textvqa_pairs_answers_by_image_and_question),
                                       EACH(pope_pairs_by_order_and_reports_f1),
                                       EACH(pope_with_too_few_labels_is_refused),
                                       EACH(mme_counts_questions_and_images),
                                       EACH(scienceqa_counts_what_was_not_answered_as_wrong),
                                       EACH(seed_reports_types_images_and_videos),
                                       EACH(mmvet_is_uploaded_by_number),
                                       EACH(mmbench_reads_pictures_from_its_table_and_writes_a_workbook),
                                       EACH(a_broken_table_is_refused_with_its_row),
                                       EACH(mmmu_scores_choices_and_open_answers_by_subject),
                                       EACH(questions_that_are_not_there_are_named)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
