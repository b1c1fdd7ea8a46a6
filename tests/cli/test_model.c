/* `mipha model quantize` and `mipha model compare` with the demonstration model. The expected scores are those of
 * transformers 4.38.2 in float32 over the same tokens, the blocks opened by numpy. */
#include "tests/support/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MIPHA      PROGRAM_DIR "/mipha"
#define DEMO       SOURCE_DIR "/models/mipha-demo"
#define TIMEOUT_MS 240000
#define RUN(...)   ended_run_of((const char *const[]){MIPHA, "model", __VA_ARGS__, NULL}, TIMEOUT_MS)

#define PPL_DEMO 370505163.49
#define PPL_Q4   322016295.48
#define KL_Q4    0.0197039

static const char TEXT[] = "A red circle is left of a blue square. There are three dogs, and a cow stands on the farm. "
                           "The word says hello.";

typedef struct {
    char *dir, *q8, *q4, *text;
} world;

static void ends(ended_run *r, int exit_code, const char *want) {
    bool says = strstr(ended_run_out(r), want) || strstr(ended_run_errors(r), want);
    if (r->exit_code != exit_code || !says)
        fail_msg("wanted %d and \"%s\", exit %d\n%s\n%s", exit_code, want, r->exit_code, ended_run_out(r),
                 ended_run_errors(r));
    ended_run_free(r);
}

static int setup(void **state) {
    world *w = calloc(1, sizeof *w);
    w->dir = temp_dir_make();
    w->q8 = path_join(w->dir, "q8"), w->q4 = path_join(w->dir, "q4"), w->text = path_join(w->dir, "text");
    file_write(w->text, TEXT, sizeof TEXT - 1);
    ended_run r = RUN("quantize", DEMO, "-o", w->q8, "--tower");
    ends(&r, 0, "matrices in 8 bits");
    r = RUN("quantize", DEMO, "-o", w->q4, "--bits", "4");
    ends(&r, 0, "27 matrices in 4 bits");
    *state = w;
    return 0;
}

static int teardown(void **state) {
    world *w = *state;
    temp_dir_remove(w->dir);
    free(w->q8), free(w->q4), free(w->text), free(w);
    return 0;
}

/* The number behind a label, the nth line that has it. */
static double number_of(const ended_run *r, const char *label, int nth) {
    const char *at = ended_run_out(r);
    for (int i = 0; i <= nth && at; i++) at = strstr(i ? at + 1 : at, label);
    if (!at) fail_msg("no %s in:\n%s%s", label, ended_run_out(r), ended_run_errors(r));
    return strtod(at + strlen(label), NULL);
}

static void near(double got, double want, double relative) {
    if (!(fabs(got - want) <= relative * fabs(want))) fail_msg("%.9g, want %.9g", got, want);
}

/* ---- promises ------------------------------------------------------------------------------------ */

static void scores_are_those_of_the_reference(void **state) {
    world *w = *state;
    ended_run r = RUN("compare", DEMO, w->q4, "--text", w->text, "--window", "16");
    near(number_of(&r, "tokens scored", 0), 32, 0);
    near(number_of(&r, "same first choice", 0), 93.75, 0);
    near(number_of(&r, "KL divergence", 0), KL_Q4, 1e-3);
    near(number_of(&r, "perplexity", 0), PPL_DEMO, 1e-4);
    near(number_of(&r, "perplexity", 1), PPL_Q4, 1e-4);
    ended_run_free(&r);
    r = RUN("compare", DEMO, DEMO, "--text", w->text);
    near(number_of(&r, "same first choice", 0), 100, 0);
    near(number_of(&r, "KL divergence", 0), 0, 0);
    ended_run_free(&r);
    r = RUN("compare", DEMO, DEMO, "--text", w->text, "--kv-dtype", "bf16");
    double lost = number_of(&r, "KL divergence", 0);
    assert_true(lost > 0 && lost < 1e-4);
    ended_run_free(&r);
}

/* What a type of products costs is said of one checkpoint against itself. */
static void a_type_of_products_has_its_loss(void **state) {
    world *w = *state;
    static const struct {
        const char *name;
        double most;
    } products[] = {{"bf16", 0.001}, {"int8", 0.005}, {"fp8", 0.05}};
    double before = 0.0;
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
        ended_run r = RUN("compare", DEMO, DEMO, "--text", w->text, "--window", "16", "--dtype", products[i].name);
        double loss = number_of(&r, "KL divergence", 0);
        if (!(loss > before && loss < products[i].most)) fail_msg("%s: KL divergence %g", products[i].name, loss);
        near(number_of(&r, "perplexity", 0), PPL_DEMO, 1e-4);
        before = loss;
        ended_run_free(&r);
    }
}

/* Eight bits lose nearly nothing: the same word for every example picture. */
static void a_quantized_checkpoint_is_one_like_any_other(void **state) {
    world *w = *state;
    ended_run r = RUN("verify", w->q8);
    ends(&r, 0, "present with the expected shapes, none extra");
    r = RUN("inspect", w->q8);
    ends(&r, 0, "F16 and Q8 in 1 file");
    r = RUN("compare", DEMO, w->q8, "--text", w->text);
    assert_true(number_of(&r, "KL divergence", 0) < 0.01);
    ended_run_free(&r);
    r = ended_run_of((const char *const[]){MIPHA, "annotate", SOURCE_DIR "/examples/farm.jpg", "-q", NULL}, TIMEOUT_MS);
    ended_run q = ended_run_of((const char *const[]){MIPHA, "annotate", SOURCE_DIR "/examples/farm.jpg", "-q", "--model",
                                                     w->q8, NULL}, TIMEOUT_MS);
    const char *a = strstr(ended_run_out(&r), "\"text\":"), *b = strstr(ended_run_out(&q), "\"text\":");
    assert_true(a && b);
    size_t n = strcspn(a, ",}");
    assert_memory_equal(a, b, n);
    ended_run_free(&r);
    ended_run_free(&q);
}

static void what_cannot_be_quantized_or_compared_is_named(void **state) {
    world *w = *state;
    char *new_dir = path_join(w->dir, "new");
    ended_run r = RUN("quantize", DEMO, "-o", w->q4);
    ends(&r, 3, "q4/model.safetensors is there already; name a new folder");
    r = RUN("quantize", w->q8, "-o", new_dir);
    ends(&r, 3, "no matrix in F32, F16 or BF16 left to quantize");
    r = RUN("quantize", DEMO, "-o", new_dir, "--bits", "5");
    ends(&r, 2, "--bits 5: write 8 or 4");
    r = RUN("quantize", DEMO);
    ends(&r, 2, "-o DIR is missing");
    r = RUN("compare", DEMO, w->q8);
    ends(&r, 2, "--text FILE is missing");
    r = RUN("compare", DEMO, w->q8, "--text", w->text, "--kv-dtype", "int8");
    ends(&r, 2, "kv-dtype \"int8\", expected auto, f32, f16, bf16 or fp8");
    r = RUN("compare", DEMO, w->q8, "--text", "/nowhere");
    ends(&r, 3, "--text /nowhere: No such file");
    char *empty = path_join(w->dir, "empty");
    file_write(empty, "", 0);
    r = RUN("compare", DEMO, w->q8, "--text", empty);
    ends(&r, 2, "has 0 tokens, expected 2 or more");
    free(empty), free(new_dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(scores_are_those_of_the_reference),
                                       cmocka_unit_test(a_type_of_products_has_its_loss),
                                       cmocka_unit_test(a_quantized_checkpoint_is_one_like_any_other),
                                       cmocka_unit_test(what_cannot_be_quantized_or_compared_is_named)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
