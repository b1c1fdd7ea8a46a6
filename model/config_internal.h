/* The parts of reading a config, for model_config.c and the files beside it. */
#ifndef MODEL_CONFIG_INTERNAL_H
#define MODEL_CONFIG_INTERNAL_H

#include "model/json_file.h"
#include "model/model_config.h"

#define WIDTH_MAX     65536
#define LAYERS_MAX    512
#define HEADS_MAX     1024
#define PIXELS_MAX    4096
#define POSITIONS_MAX (1 << 24)

/* The activation a config names under key; fallback when it is missing. Refuses unknown names. */
ops_act config_read_act(json_view *v, const char *key, const char *fallback);

/* The hidden state that is taken as features: key of its number, and key of a word that says whether the class
 * token is kept. After the tower. */
void config_read_select(model_tower_config *t, json_view *v, const char *layer_key, const char *feature_key,
                        const char *without, const char *with);

/* Everything but what depends on the size of the images, and the selection. */
MUST_USE status config_read_tower(model_tower_config *t, const model_format *format, json_view v);

/* After the tower: its family decides the defaults. */
MUST_USE status config_read_preprocess(model_preprocess_config *p, const model_tower_config *t, json_view v);

/* Image size and numbers of tokens. */
void config_finish_tower(model_tower_config *t, const model_preprocess_config *p);

/* found: the family that the tensors' names show, or MODEL_DECODER_KINDS. */
MUST_USE status config_read_decoder(model_decoder_config *d, const model_format *format, model_decoder_kind found,
                                    json_view *v);

#endif
