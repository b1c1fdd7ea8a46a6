/* The table of positions as a tower adds it to the tokens of one picture.
 *
 *     float *table = calloc(n_rows * hidden, sizeof *table);
 *     position_table_make(table, &stored, &config->tower);
 *
 * DINOv2 was trained on a grid of 37 x 37 patches and resamples its table for any other one. Any thread. */
#ifndef VISION_NODE_POSITION_TABLE_H
#define VISION_NODE_POSITION_TABLE_H

#include "model/model_config.h"
#include "ops/tensor.h"

/* table [n_rows, hidden]. stored: on the host, [class token and table_grid * table_grid patches, hidden],
 * f32, f16 or bf16. Where the grids differ, patches are resampled with PyTorch's bicubic filter (a = -0.75,
 * no antialiasing, edges repeated) at the scale (grid + 0.1) / table_grid that the reference gives it.
 * Source: Dinov2Embeddings of transformers 4.38.2. */
void position_table_make(float *table, const ops_tensor *stored, const model_tower_config *tower);

#endif
