/* The rows of a command line that say how a checkpoint is opened, and what they mean.
 *
 *     static const option_row rows[] = {..., MODEL_LOAD_ROWS, {0}};
 *     model_settings s = model_settings_read(o, dir);
 *     st = model_open(&m, &s, &e);
 */
#ifndef MODEL_MODEL_OPTIONS_H
#define MODEL_MODEL_OPTIONS_H

#include "base/options.h"
#include "model/model.h"

#define MODEL_ADAPTER_ROW                                                                          \
    {"adapter", 0, OPTION_STRING, "DIR", NULL, 0, 0,                                               \
     "a PEFT adapter (LoRA) merged into the checkpoint"}

#define MODEL_DTYPE_ROW                                                                            \
    {"dtype", 0, OPTION_STRING, "TYPE", "auto", 0, 0,                                              \
     "f32 or f16: weights are converted to it; bf16, int8, fp8: and products rounded to it; auto: as stored, exact products"}

#define MODEL_KV_DTYPE_ROW                                                                         \
    {"kv-dtype", 0, OPTION_STRING, "TYPE", "auto", 0, 0,                                           \
     "what keys and values are kept in: f32, f16, bf16 or fp8; auto: as activations, on a CPU halves beside products in bf16 or int8"}

#define FAST_ROW                                                                                   \
    {"fast", 0, OPTION_FLAG, NULL, NULL, 0, 0,                                                     \
     "on a GPU, let an answer's bytes depend on what is computed beside it, for speed"}

#define MODEL_LOAD_ROWS                                                                            \
    MODEL_ADAPTER_ROW, MODEL_DTYPE_ROW, MODEL_KV_DTYPE_ROW,                                        \
        {"serve-adapter", 0, OPTION_LIST, "NAME=DIR", NULL, 0, 0,                                  \
         "a PEFT adapter that items ask for by its name; may be repeated"}

/* MODEL_PART_ALL of dir, as MODEL_LOAD_ROWS say; views of o. */
model_settings model_settings_read(const options *o, const char *dir);

#endif
