/* For our own mistakes only, on in every build: logs what must hold, then aborts.
 *
 *     CHECK(queue->n <= queue->n_max, "a queue never holds more than its limit");
 *
 * Never for input: what the world can cause returns a status. */
#ifndef BASE_CHECK_H
#define BASE_CHECK_H

#ifdef __cplusplus
extern "C" {
#endif

#define CHECK(cond, what) ((cond) ? (void)0 : check_failed(__FILE__, __LINE__, #cond, what))

#define BUILD_CHECK(cond, what) _Static_assert(cond, what)

__attribute__((noreturn)) void check_failed(const char *file, int line, const char *cond, const char *what);

#ifdef __cplusplus
}
#endif

#endif
