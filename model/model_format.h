/* How a checkpoint folder is laid out: what stands before the names of its parts' tensors, and where config.json
 * keeps their keys.
 *
 *     name = f->decoder + "layers.0." + decoder_families[kind].marker
 *
 * Mipha's own, in which LLaVA-Phi is published too, and the two in which Hugging Face has kept LLaVA. */
#ifndef MODEL_MODEL_FORMAT_H
#define MODEL_MODEL_FORMAT_H

#include <stdbool.h>

#include "model/decoder_family.h"

typedef struct {
    const char *tower;     /* "vision_model." or "dinov2." follows */
    const char *projector; /* a number follows, as a matter of projector_first and projector_step */
    int projector_first, projector_step;
    const char *decoder;   /* "layers.0." follows */
    const char *head;
    bool is_llava;         /* config.json has text_config and vision_config, as LlavaConfig does */
} model_format;

extern const model_format model_format_mipha, model_format_llava, model_format_llava_new;

/* What a folder holds, by the names of its tensors. */
typedef struct {
    const model_format *format; /* NULL: no tensor tells */
    model_decoder_kind decoder; /* MODEL_DECODER_KINDS: no tensor tells */
} model_signs;

#endif
