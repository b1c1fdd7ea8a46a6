/* Threads that do pieces of work side by side, for one owner who never waits for them.
 *
 *     crew_open(&c, 4, tell, user, &e);
 *     thing->work = (crew_work){.run = decode_thing, .done = thing_is_decoded};
 *     crew_give(c, &thing->work);       // run is called on a thread of the crew
 *     crew_collect(c);                  // done is called here for each piece that was run since
 *     crew_close(&c);                   // waits for pieces that run; of the others nothing is called
 *
 * Pieces are begun in the order they were given and come back in the order they end. tell is called on a
 * thread of the crew after each: it wakes the owner. A piece belongs to the crew from crew_give until done
 * is called; between the two only run touches what it works on. Unbounded by itself: what is given is bounded
 * by what the owner has. give, collect and close are the owner's thread's. */
#ifndef VISION_NODE_CREW_H
#define VISION_NODE_CREW_H

#include "base/err.h"

#define CREW_THREADS_MAX 128

typedef struct crew crew;

typedef struct crew_work { /* the first member of what is worked on */
    struct crew_work *next;
    void (*run)(struct crew_work *work);
    void (*done)(struct crew_work *work);
} crew_work;

/* Errors: NO_MEMORY. */
MUST_USE status crew_open(crew **c, int n_threads, void (*tell)(void *user), void *user, err *e);
void crew_close(crew **c); /* NULL inside is fine */

void crew_give(crew *c, crew_work *work);
void crew_collect(crew *c);

#endif
