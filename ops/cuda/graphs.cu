/* Graphs: launches that the stream keeps instead of doing them, as one thing to launch.
 *
 * A graph holds the arguments of its launches as they were, addresses among them. All of those are the caller's but that of
 * scratch, which moves when it grows: a graph remembers which move was the last.
 *
 * Recording is this thread's alone (ThreadLocal): another context's thread may take memory meanwhile. */
#include <stdlib.h>

#include "ops/cuda/cuda_internal.cuh"

struct ops_graph {
    cudaGraphExec_t run;
    unsigned n_scratch_moves;
};

static status refused(err *e, cudaError_t error, const char *what) {
    (void)cudaGetLastError(); /* said here, not by the next launch */
    return fail(e, error == cudaErrorMemoryAllocation ? STATUS_NO_MEMORY : STATUS_DEVICE, "ops: %s a graph: %s", what,
                cudaGetErrorString(error));
}

status cuda_graph_begin(void *state, err *e) {
    cuda_state *s = static_cast<cuda_state *>(state);
    cudaError_t error = cudaSetDevice(s->device);
    if (error == cudaSuccess) error = cudaStreamBeginCapture(s->stream, cudaStreamCaptureModeThreadLocal);
    if (error != cudaSuccess) return refused(e, error, "beginning");
    s->is_recording = true;
    return STATUS_OK;
}

static status make(const cuda_state *s, ops_graph **graph, cudaGraph_t recorded, err *e) {
    ops_graph *g = static_cast<ops_graph *>(calloc(1, sizeof *g));
    if (!g) return fail(e, STATUS_NO_MEMORY, "ops: no memory for a graph");
    g->n_scratch_moves = s->n_scratch_moves;
    cudaError_t error = cudaGraphInstantiate(&g->run, recorded, 0);
    if (error != cudaSuccess) {
        free(g);
        return refused(e, error, "making");
    }
    *graph = g;
    return STATUS_OK;
}

status cuda_graph_end(void *state, ops_graph **graph, err *e) {
    cuda_state *s = static_cast<cuda_state *>(state);
    cudaGraph_t recorded = NULL;
    s->is_recording = false;
    cudaError_t error = cudaStreamEndCapture(s->stream, &recorded);
    status st = STATUS_OK;
    if (error == cudaSuccess && graph) st = make(s, graph, recorded, e);
    else if (graph) st = refused(e, error, "recording");
    else (void)cudaGetLastError();
    if (recorded) (void)cudaGraphDestroy(recorded);
    return st;
}

bool cuda_graph_is_current(const void *state, const ops_graph *graph) {
    return graph->n_scratch_moves == static_cast<const cuda_state *>(state)->n_scratch_moves;
}

status cuda_graph_run(void *state, const ops_graph *graph) {
    cuda_state *s = static_cast<cuda_state *>(state);
    TRY(cuda_use_device(s));
    CUDA_TRY(cudaGraphLaunch(graph->run, s->stream));
    return STATUS_OK;
}

void cuda_graph_close(void *state, ops_graph *graph) {
    cuda_state *s = static_cast<cuda_state *>(state);
    (void)cudaStreamSynchronize(s->stream); /* it may still run */
    (void)cudaGraphExecDestroy(graph->run);
    free(graph);
}
