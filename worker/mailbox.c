#include "worker/mailbox.h"

#include <poll.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/check.h"

status mailbox_open(mailbox *m, err *e) {
    *m = (mailbox){.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    if (m->event_fd < 0) return fail_errno(e, STATUS_IO, "mailbox: eventfd");
    CHECK(pthread_mutex_init(&m->mutex, NULL) == 0, "a mutex can be made");
    m->last = &m->first;
    return STATUS_OK;
}

void mailbox_close(mailbox *m) {
    CHECK(!m->first, "a mailbox is emptied before it is closed");
    (void)close(m->event_fd);
    (void)pthread_mutex_destroy(&m->mutex);
}

void mailbox_wake(mailbox *m) {
    uint64_t one = 1;
    ssize_t n = write(m->event_fd, &one, sizeof one);
    (void)n; /* a full counter is readable already, which is all that is wanted */
}

void mailbox_push(mailbox *m, mailbox_letter *letter) {
    letter->next = NULL;
    CHECK(pthread_mutex_lock(&m->mutex) == 0, "the mutex is ours");
    *m->last = letter;
    m->last = &letter->next;
    (void)pthread_mutex_unlock(&m->mutex);
    mailbox_wake(m);
}

mailbox_letter *mailbox_pop(mailbox *m) {
    CHECK(pthread_mutex_lock(&m->mutex) == 0, "the mutex is ours");
    mailbox_letter *letter = m->first;
    if (letter) {
        m->first = letter->next;
        if (!m->first) m->last = &m->first;
        letter->next = NULL;
    }
    (void)pthread_mutex_unlock(&m->mutex);
    return letter;
}

void mailbox_wait(mailbox *m, int timeout_ms) {
    struct pollfd p = {.fd = m->event_fd, .events = POLLIN};
    if (timeout_ms != 0) (void)poll(&p, 1, timeout_ms); /* a signal only ends the wait early */
    uint64_t count;
    ssize_t n = read(m->event_fd, &count, sizeof count);
    (void)n; /* nothing to clear is fine */
}
