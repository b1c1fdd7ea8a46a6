/* `mipha model quantize`: a checkpoint with its matrices in 8 or 4 bits. */
#include <stdio.h>

#include "cli/commands.h"
#include "cli/model_place.h"
#include "model/quantize.h"

static const option_row rows[] = {
    {"output", 'o', OPTION_STRING, "DIR", NULL, 0, 0, "the new checkpoint's folder"},
    {"bits", 0, OPTION_INT, "N", "8", 4, 8, "8 or 4 bits a weight, and half a bit for scales"},
    {"tower", 0, OPTION_FLAG, NULL, NULL, 0, 0, "the vision tower's matrices too; features then change"},
    {"adapter", 0, OPTION_STRING, "DIR", NULL, 0, 0, "a PEFT adapter (LoRA) merged before"},
    {0}};

const option_table model_quantize_table = {
    .program = "mipha model quantize",
    .positional = "DIR",
    .purpose = "write a checkpoint again with its matrices in 8 or 4 bits",
    .example = "  mipha model quantize Mipha-3B -o Mipha-3B-q8\n"
               "  mipha model quantize Mipha-3B -o Mipha-3B-q4 --bits 4\n"
               "  mipha model compare Mipha-3B Mipha-3B-q4 --text book.txt\n",
    .rows = rows,
    .positional_min = 1,
    .positional_max = 1};

status model_quantize_run(const options *o, int *exit_code, err *e) {
    char dir[MODEL_PLACE_BYTES];
    int64_t bits = options_int(o, "bits");
    quantize_settings s = {.dir = dir,
                           .adapter_dir = options_string(o, "adapter"),
                           .out_dir = options_string(o, "output"),
                           .dtype = bits == 8 ? OPS_DTYPE_Q8 : OPS_DTYPE_Q4,
                           .has_tower = options_flag(o, "tower")};
    if (bits != 8 && bits != 4) return fail(e, STATUS_BAD_ARGUMENT, "--bits %d: write 8 or 4", (int)bits);
    if (!s.out_dir) return fail(e, STATUS_BAD_ARGUMENT, "-o DIR is missing: where the new checkpoint goes");
    quantize_result r;
    status st = model_place(dir, o->positional[0], e);
    if (st == STATUS_OK) st = model_quantize(&s, &r, e);
    if (st != STATUS_OK) {
        *exit_code = exit_code_not_started(st);
        return st;
    }
    (void)printf("%s: %llu matrices in %d bits, weights of %.1f MB became %.1f MB\n", s.out_dir,
                 (unsigned long long)r.n_matrices, (int)bits, (double)r.bytes_before / 1e6, (double)r.bytes_after / 1e6);
    *exit_code = EXIT_ALL_ANSWERED;
    return STATUS_OK;
}
