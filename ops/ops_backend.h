/* Private: the table a backend fills. context.c and ops.c have checked every argument before they call a slot:
 * shapes fit, dtypes are allowed, places are the device, overlap is as ops.h allows it, and no
 * tensor is empty (an operator with nothing to write returns before the call).
 *
 * A slot may still fail for what only the data or the machine knows: an index outside its table
 * (BAD_ARGUMENT, before anything is written, or at the next sync), NO_MEMORY for scratch, DEVICE.
 * The contracts of the operators stand in ops.h and are not repeated here. */
#ifndef OPS_OPS_BACKEND_H
#define OPS_OPS_BACKEND_H

#include "ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What every backend's matrix begins with. */
struct ops_matrix {
    int64_t n_out, n_in;
    ops_dtype dtype; /* of the weights as they are held */
    ops_product product;
    size_t bytes; /* device memory held */
};

#define OPS_THREADS_MAX 256 /* of ops_settings */

#define OPS_DTYPE_BIT(dtype) (1u << (dtype))

typedef struct {
    const char *name;     /* what ops_settings.device begins with */
    bool tells_few;       /* few rows go another way (ops_linear_params) */
    unsigned activations; /* OPS_DTYPE_BIT of each dtype it computes in; f32 always */
    unsigned caches;      /* of each dtype it keeps keys and values in, whatever the activations; theirs always */

    int (*count)(void); /* devices of this kind in this machine */

    /* device_index is N of "name:N", 0 when absent. text receives what ops_device_text answers. */
    status (*open)(void **state, const ops_settings *settings, int device_index, char *text,
                   size_t text_bytes, err *e);
    void (*close)(void *state);

    status (*memory_open)(void *state, void **data, size_t bytes, err *e); /* zeroed, 64-aligned */
    void (*memory_close)(void *state, void *data, size_t bytes);
    status (*host_open)(void *state, void **host, size_t bytes, err *e); /* zeroed, 64-aligned */
    void (*host_close)(void *state, void *host, size_t bytes);
    status (*upload)(void *state, void *device, const void *host, size_t bytes);
    status (*download)(void *state, void *host, const void *device, size_t bytes);
    status (*sync)(void *state);

    /* All NULL: calls have done all when they return. A mark that was never set is reached. */
    status (*upload_ahead)(void *state, void *device, const void *host, size_t bytes);
    status (*download_behind)(void *state, void *host, const void *device, size_t bytes);
    status (*mark_open)(void *state, ops_mark **mark, err *e);
    status (*mark_set)(void *state, ops_mark *mark);
    status (*mark_wait)(void *state, ops_mark *mark);
    void (*mark_close)(void *state, ops_mark *mark);

    /* All NULL: the device has no graphs. Calls come in order (begin, operators, end); graph NULL at the end: none is
     * wanted, and nothing fails. What is run is current. */
    status (*graph_begin)(void *state, err *e);
    status (*graph_end)(void *state, ops_graph **graph, err *e);
    bool (*graph_is_current)(const void *state, const ops_graph *graph);
    status (*graph_run)(void *state, const ops_graph *graph);
    void (*graph_close)(void *state, ops_graph *graph);

    /* a product the backend does not have is UNSUPPORTED */
    status (*matrix_open)(void *state, ops_matrix **matrix, const ops_rows *rows,
                          const ops_tensor *bias, ops_product product, err *e);
    void (*matrix_close)(void *state, ops_matrix *matrix);

    /* out is of x's dtype or f32 */
    status (*linear)(void *state, ops_tensor *out, const ops_tensor *x, const ops_matrix *matrix,
                     const ops_linear_params *params);
    status (*layer_norm)(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *w,
                         const ops_tensor *b, float eps);
    status (*rms_norm)(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *w, float eps);
    status (*activate)(void *state, ops_tensor *out, const ops_tensor *x, ops_act act);
    status (*gate)(void *state, ops_tensor *out, const ops_tensor *x, ops_act act);
    status (*scale_columns)(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *w);
    /* table has at least one row and the columns of x; ops_add is the case of equal rows. The table is f32 or
     * of x's dtype. */
    status (*add_table)(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *table);
    status (*gather_rows)(void *state, ops_tensor *out, const ops_tensor *table,
                          const ops_tensor *ids);
    status (*scatter_rows)(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *to);
    status (*cast)(void *state, ops_tensor *out, const ops_tensor *x);
    status (*candidates_rows)(void *state, ops_tensor *out, const ops_tensor *x, int64_t n,
                              const ops_candidates_wanted *wanted);
    status (*patch_rows)(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *levels, int patch);
    status (*attention)(void *state, ops_tensor *out, const ops_tensor *q, const ops_tensor *k,
                        const ops_tensor *v, int64_t length, const ops_attention_params *params);
    status (*rope)(void *state, ops_tensor *x, const ops_tensor *cos, const ops_tensor *sin,
                   const ops_tensor *positions, int n_heads);
    status (*kv_append)(void *state, ops_tensor *k_cache, ops_tensor *v_cache, const ops_tensor *k, const ops_tensor *v,
                        ops_tensor *q, const ops_kv_places *at, int n_heads, int n_kv_heads);
    status (*kv_copy_block)(void *state, ops_tensor *cache, int64_t to, int64_t from);
    status (*attention_paged)(void *state, ops_tensor *out, const ops_tensor *q,
                              const ops_tensor *k_cache, const ops_tensor *v_cache,
                              const ops_tensor *tables, const ops_tensor *row_seq,
                              const ops_tensor *row_pos, const ops_attention_params *params);
} ops_backend;

extern const ops_backend cpu_backend;
extern const ops_backend cuda_backend; /* where MIPHA_CUDA is defined */

#ifdef __cplusplus
}
#endif

#endif
