/* The vision tower: pixels of pictures to features, many pictures at once, forward only.
 *
 *     vision_encoder *v;
 *     st = vision_encoder_open(&v, ctx, m, 8, &e);
 *     st = vision_encoder_start(v, pixels, n, features, &e);
 *     // anything else, while a device works
 *     st = vision_encoder_finish(v, &e);
 *     vision_encoder_close(&v);
 *
 * Runs the layers up to the selected hidden state; no final norm is applied. A picture's features are
 * the same bytes whatever other pictures run with it. All memory is taken at open. One thread, that of
 * the context; the context and the model outlive it. */
#ifndef VISION_NODE_VISION_ENCODER_H
#define VISION_NODE_VISION_ENCODER_H

#include "model/model.h"
#include "ops/ops.h"

#define VISION_ENCODER_IMAGES_MAX 256
#define VISION_ENCODER_RUNS_MAX   2 /* one is computed, the other crosses */

typedef struct vision_encoder vision_encoder;

/* max_images: the most one run may hold, 1 .. VISION_ENCODER_IMAGES_MAX. m was opened with
 * MODEL_PART_TOWER. Errors: BAD_ARGUMENT, NO_MEMORY, DEVICE. */
MUST_USE status vision_encoder_open(vision_encoder **v, ops_ctx *ctx, const model *m,
                                    int max_images, err *e);
void vision_encoder_close(vision_encoder **v);

/* Begins a run. pixels[i]: host, [size, size, 3], as image_preprocess makes them. features[i]: host, [n_tokens, hidden] in
 * model_tower_dtype, vision_encoder_feature_bytes bytes. Both are the run's until vision_encoder_finish, whose caller
 * finds the features there; the two arrays of pointers only during the call. In memory of ops_host_open they cross
 * while another run is computed. Up to vision_encoder_n_runs are under way at once, and are finished in the order in which
 * they began. The CPU has all done when this returns. After an error the run is not under way.
 * Errors: BAD_ARGUMENT, DEVICE. */
MUST_USE status vision_encoder_start(vision_encoder *v, const unsigned char *const *pixels, int n_images,
                                     void *const *features, err *e);
MUST_USE status vision_encoder_finish(vision_encoder *v, err *e);

int vision_encoder_n_runs(const vision_encoder *v); /* CPU 1, CUDA VISION_ENCODER_RUNS_MAX */

/* vision_encoder_start for pictures that lie one after another: pixels [n_images, size, size, 3], features [n_images,
 * n_tokens, hidden]. */
MUST_USE status vision_encoder_start_dense(vision_encoder *v, const unsigned char *pixels, int n_images,
                                           void *features, err *e);

/* That, and vision_encoder_finish. No other run is under way. */
MUST_USE status vision_encoder_run(vision_encoder *v, const unsigned char *pixels, int n_images,
                                   void *features, err *e);

size_t vision_encoder_feature_bytes(const vision_encoder *v); /* of one picture */
size_t vision_encoder_device_bytes(const vision_encoder *v);  /* weights and activations together */

/* For tests: called with hidden state 0 (after the position table) [n_rows, hidden], then after every layer; on the device,
 * good during the call. NULL turns it off. */
typedef void vision_tap(void *user, int layer, const ops_tensor *x);
void vision_encoder_set_tap(vision_encoder *v, vision_tap *tap, void *user);

#endif
