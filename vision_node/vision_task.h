/* A job the vision node has begun: its files, what has become of each of its images, and its answer.
 *
 *     task *t = task_open(j);
 *     task_open_files(t, tower_fingerprint);    // on a thread of the crew
 *     st = task_keep(t, i, &features, &e);      // for features that go with the answer
 *     task_close(&t);
 *
 * Most jobs have one image. One with several is a bundle, and each of its images has the cache key it would have
 * alone, so features are shared whatever company an image comes in.
 *
 * The files are read by other threads. So a job is answered (work is NULL from then on) before its task is gone:
 * n_lent counts the pieces of work that still read them. */
#ifndef VISION_NODE_VISION_TASK_H
#define VISION_NODE_VISION_TASK_H

#include "cache/cache.h"
#include "proto/bundle.h"
#include "vision_node/crew.h"
#include "worker/worker.h"

typedef struct picture picture;

/* One image of a task. */
typedef struct {
    cache_key key;
    picture *picture; /* where it is on its way, or NULL */
    bool is_through;  /* its features are in the cache or in the task's blobs */
    bool asked_first; /* the picture was begun for it */
    bool was_here;    /* nobody encoded it for this task */
    bool has_blob;
} task_image;

typedef struct task {
    crew_work opening;
    struct task *next;
    void *owner;
    job *work;
    int n_lent;
    wire_payload *frames; /* as they came, until they are joined */
    buf payload;
    unsigned char sha256[HASH_SHA256_BYTES]; /* the payload should have */
    bundle files; /* views of the payload; n is 1 for a single image */
    status opened; /* of the files, and why not */
    err why;
    bool is_bundle, trusts_cache, applies_exif;
    int n_images; /* for the owner, who looks at no image before: 0 until the files are open */
    bool travels; /* features go with the answer */
    unsigned char *blobs; /* for each image, as the cache would hold it; NULL until one is kept */
    vision_report report;
    task_image images[MESSAGE_IMAGES_MAX];
} task;

/* Takes the job over. NULL: no memory, and the job is still the caller's. */
task *task_open(job *j);
void task_close(task **t); /* frees a job that was not answered */

/* Joins, checks and takes apart what came with the job, and makes the images' keys; says in t->opened how it went.
 * The SHA-256 of what was sent is checked whoever says it is right: a wrong entry in the cache would be served to
 * everybody who asks about that image. Errors: BAD_MESSAGE, NO_MEMORY. */
void task_open_files(task *t, const unsigned char *tower_fingerprint);

bool task_is(const task *t, const item_id *item, uint32_t attempt); /* and was not answered */
bool task_is_through(const task *t);

/* Keeps the features of image i as a blob. Errors: NO_MEMORY. */
MUST_USE status task_keep(task *t, int i, const blob *features, err *e);

#endif
