/* `mipha model random`: a checkpoint of random weights, for measuring. */
#include <stdio.h>

#include "cli/commands.h"
#include "model/random_checkpoint.h"

static const option_row rows[] = {
    {"output", 'o', OPTION_STRING, "DIR", NULL, 0, 0, "the new checkpoint's folder"},
    {"dtype", 0, OPTION_STRING, "TYPE", "bf16", 0, 0, "how weights are stored: f32, f16 or bf16"},
    {"tower-layers", 0, OPTION_INT, "N", "27", 2, 512, "layers of the vision tower; all but the last are run"},
    {"decoder-layers", 0, OPTION_INT, "N", "32", 1, 512, "layers of the language model"},
    {"seed", 's', OPTION_INT, "S", "0", 0, 4294967295.0, "of the weights"},
    {0}};

const option_table model_random_table = {
    .program = "mipha model random",
    .purpose = "write a checkpoint with the sizes of Mipha-3B and random weights, for measuring",
    .example = "  mipha model random -o random-3b\n"
               "  mipha model random -o shallow --tower-layers 5 --decoder-layers 4\n",
    .rows = rows};

status model_random_run(const options *o, int *exit_code, err *e) {
    random_checkpoint s = {.out_dir = options_string(o, "output"),
                           .dtype = options_string(o, "dtype"),
                           .tower_layers = (int)options_int(o, "tower-layers"),
                           .decoder_layers = (int)options_int(o, "decoder-layers"),
                           .seed = (uint64_t)options_int(o, "seed")};
    if (!s.out_dir) return fail(e, STATUS_BAD_ARGUMENT, "-o DIR is missing: where the checkpoint goes");
    status st = random_checkpoint_write(&s, e);
    *exit_code = st == STATUS_OK ? EXIT_ALL_ANSWERED : exit_code_not_started(st);
    return st;
}
