#include "model/model_format.h"

#include <stddef.h>

/* Odd numbers are the GELUs between, which have no tensors. */
const model_format model_format_mipha = {.tower = "model.vision_tower.",
                                         .projector = "model.mm_projector.",
                                         .projector_first = 0,
                                         .projector_step = 2,
                                         .decoder = "model.",
                                         .head = "lm_head"};
const model_format model_format_llava = {.tower = "vision_tower.",
                                         .projector = "multi_modal_projector.linear_",
                                         .projector_first = 1,
                                         .projector_step = 1,
                                         .decoder = "language_model.model.",
                                         .head = "language_model.lm_head",
                                         .is_llava = true};
/* From transformers 4.52 on. */
const model_format model_format_llava_new = {.tower = "model.vision_tower.",
                                             .projector = "model.multi_modal_projector.linear_",
                                             .projector_first = 1,
                                             .projector_step = 1,
                                             .decoder = "model.language_model.",
                                             .head = "lm_head",
                                             .is_llava = true};
