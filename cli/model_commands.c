/* `mipha model inspect` and `mipha model verify`: what model/model.h says about a folder. */
#include "cli/commands.h"
#include "cli/model_place.h"
#include "model/model.h"

static const option_row rows[] = {{0}};

const option_table model_inspect_table = {
    .program = "mipha model inspect",
    .positional = "[DIR]",
    .purpose = "architecture, sizes, fingerprints and memory needs of a checkpoint; without DIR, of the demonstration model",
    .example = "  mipha model inspect Mipha-3B/\n",
    .rows = rows,
    .positional_max = 1};

const option_table model_verify_table = {
    .program = "mipha model verify",
    .positional = "[DIR]",
    .purpose = "check that every tensor is there with its shape, and name every extra one; without DIR, in the demonstration model",
    .example = "  mipha model verify Mipha-3B/\n",
    .rows = rows,
    .positional_max = 1};

static status run(const options *o, int *exit_code, err *e, status (*report)(const char *, FILE *, err *)) {
    char dir[MODEL_PLACE_BYTES];
    status st = model_place(dir, o->n_positional ? o->positional[0] : NULL, e);
    if (st == STATUS_OK) st = report(dir, stdout, e);
    if (st != STATUS_OK) *exit_code = exit_code_not_started(st);
    return st;
}

status model_inspect_run(const options *o, int *exit_code, err *e) {
    return run(o, exit_code, e, model_inspect);
}

status model_verify_run(const options *o, int *exit_code, err *e) {
    return run(o, exit_code, e, model_verify);
}
