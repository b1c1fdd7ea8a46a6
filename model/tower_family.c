/* Source of the names: the modules of Hugging Face transformers that the published checkpoints are saved
 * from. "pre_layrnorm" is spelled so there. */
#include "model/tower_family.h"

#define CLIP_LAYERS                                                                                \
    .layers = "encoder.layers.", .norm1 = "layer_norm1", .q = "self_attn.q_proj",                  \
    .k = "self_attn.k_proj", .v = "self_attn.v_proj", .out = "self_attn.out_proj",                 \
    .norm2 = "layer_norm2", .fc1 = "mlp.fc1", .fc2 = "mlp.fc2"

#define DINOV2                                                                                     \
    .patch = "embeddings.patch_embeddings.projection", .has_patch_bias = true,                     \
    .class_token = "embeddings.cls_token", .positions = "embeddings.position_embeddings",          \
    .is_batched = true, .interpolates = true, .layers = "encoder.layer.", .norm1 = "norm1",           \
    .q = "attention.attention.query", .k = "attention.attention.key",                              \
    .v = "attention.attention.value", .out = "attention.output.dense",                             \
    .scale1 = "layer_scale1.lambda1", .norm2 = "norm2", .scale2 = "layer_scale2.lambda1"

const tower_family tower_families[MODEL_TOWER_KINDS] = {
    [MODEL_TOWER_SIGLIP] = {.title = "SigLIP",
                            .patch = "embeddings.patch_embedding",
                            .has_patch_bias = true,
                            .positions = "embeddings.position_embedding.weight",
                            CLIP_LAYERS},
    [MODEL_TOWER_CLIP] = {.title = "CLIP",
                          .patch = "embeddings.patch_embedding",
                          .class_token = "embeddings.class_embedding",
                          .positions = "embeddings.position_embedding.weight",
                          .pre_norm = "pre_layrnorm",
                          CLIP_LAYERS},
    [MODEL_TOWER_DINOV2] = {.title = "DINOv2", DINOV2, .fc1 = "mlp.fc1", .fc2 = "mlp.fc2"},
    [MODEL_TOWER_DINOV2_SWIGLU] = {.title = "DINOv2 with SwiGLU",
                                   DINOV2,
                                   .fc1 = "mlp.weights_in",
                                   .fc2 = "mlp.weights_out",
                                   .is_gated = true},
};
