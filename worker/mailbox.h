/* Pointers handed from one thread to another, with a descriptor to poll on.
 *
 *     mailbox_push(&m, letter);                  // any thread
 *     letter = mailbox_pop(&m);                  // NULL when empty
 *     mailbox_wait(&m, 100);                     // until a letter or a wake-up, at most 100 ms
 *
 * Order is kept. Unbounded by itself: what is pushed is bounded by the credits the node has given. */
#ifndef WORKER_MAILBOX_H
#define WORKER_MAILBOX_H

#include <pthread.h>
#include <stdbool.h>

#include "base/err.h"

typedef struct mailbox_letter {
    struct mailbox_letter *next; /* a letter's first member; owned by whoever holds the letter */
} mailbox_letter;

typedef struct {
    pthread_mutex_t mutex; /* guards first, last */
    mailbox_letter *first;
    mailbox_letter **last;
    int event_fd; /* readable while something was pushed or woken since the last mailbox_wait */
} mailbox;

MUST_USE status mailbox_open(mailbox *m, err *e);
void mailbox_close(mailbox *m); /* letters still inside are the caller's to pop first */
void mailbox_push(mailbox *m, mailbox_letter *letter);
mailbox_letter *mailbox_pop(mailbox *m);
void mailbox_wake(mailbox *m);
void mailbox_wait(mailbox *m, int timeout_ms); /* -1: for ever; 0: only clears the wake-up */

#endif
