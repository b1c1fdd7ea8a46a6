/* What mipha bench does, by llama.cpp: compiled and asked by compare_llama.py, no part of the build.
 *
 *     llama_peer FILE.gguf THREADS        then, on standard input, one request a line:
 *
 *     prefill T       a prompt of T tokens, logits of the last
 *     decode B C      one token for each of B sequences, the context being C with it; the first one
 *                     fills all keys and values beforehand, untimed
 *
 * Each is answered with one line, "ms 123.456". */
#include <llama.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SEQS_MAX    8
#define CONTEXT_MAX 1024

static struct llama_context *ctx;

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static void quiet(enum ggml_log_level level, const char *text, void *user) {
    (void)user;
    if (level == GGML_LOG_LEVEL_ERROR) (void)fputs(text, stderr);
}

/* rows_each tokens at the end of a context for sequences first_seq and on, and the time that takes. */
static double step(int first_seq, int n_seqs, int rows_each, int context) {
    struct llama_batch batch = llama_batch_init(n_seqs * rows_each, 0, 1);
    for (int s = 0; s < n_seqs; s++)
        for (int r = 0; r < rows_each; r++) {
            int i = batch.n_tokens++;
            batch.token[i] = (7 * i + s) % 200;
            batch.pos[i] = context - rows_each + r;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = first_seq + s;
            batch.logits[i] = r == rows_each - 1;
        }
    double start = now_ms();
    if (llama_decode(ctx, batch) != 0) exit(1);
    llama_synchronize(ctx);
    double ms = now_ms() - start;
    llama_batch_free(batch);
    return ms;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model *m = llama_model_load_from_file(argv[1], llama_model_default_params());
    struct llama_context_params p = llama_context_default_params();
    p.n_ctx = SEQS_MAX * CONTEXT_MAX;
    p.n_batch = CONTEXT_MAX;
    p.n_seq_max = SEQS_MAX;
    p.n_threads = p.n_threads_batch = (int)strtol(argv[2], NULL, 10);
    ctx = m ? llama_init_from_model(m, p) : NULL;
    if (!ctx) return 1;
    (void)printf("ready %s\n", llama_print_system_info());
    (void)fflush(stdout);
    llama_memory_t memory = llama_get_memory(ctx);
    char what[16];
    int a, b, filled = 0; /* the context that every sequence has */
    for (char line[64]; fgets(line, sizeof line, stdin);) {
        double ms;
        b = 0;
        if (sscanf(line, "%15s %d %d", what, &a, &b) < 2 || a < 1) return 2;
        if (strcmp(what, "prefill") == 0 && a <= CONTEXT_MAX) {
            llama_memory_clear(memory, true);
            filled = 0;
            ms = step(0, 1, a, a);
        } else if (strcmp(what, "decode") == 0 && a <= SEQS_MAX && b >= 2 && b <= CONTEXT_MAX) {
            if (filled != b) {
                llama_memory_clear(memory, true);
                for (int s = 0; s < SEQS_MAX; s++) (void)step(s, 1, b - 1, b - 1);
                filled = b;
            }
            ms = step(0, a, 1, b);
            for (int s = 0; s < a; s++) (void)llama_memory_seq_rm(memory, s, b - 1, -1);
        } else {
            return 2;
        }
        (void)printf("ms %.3f\n", ms);
        (void)fflush(stdout);
    }
    llama_free(ctx);
    llama_model_free(m);
    return 0;
}
