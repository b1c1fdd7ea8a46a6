/* The cores this process may run on, at least 1: those of its affinity, which taskset and containers narrow, not those
 * of the machine. */
#ifndef BASE_CORES_H
#define BASE_CORES_H

#ifdef __cplusplus
extern "C" {
#endif

int cores_available(void);

#ifdef __cplusplus
}
#endif

#endif
