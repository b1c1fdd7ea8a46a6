/* Monotonic time in microseconds. Wall time appears only in logs.
 *
 *     int64_t deadline_us = clock_now_us() + 5 * CLOCK_SECOND_US;
 *
 * Pure modules take the time as an argument instead of calling this, so that tests own the clock. */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdint.h>

#define CLOCK_MS_US     INT64_C(1000)
#define CLOCK_SECOND_US INT64_C(1000000)

int64_t clock_now_us(void);

#endif
