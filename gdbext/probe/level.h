/*
 * What QEMU is to log, by kind: a number of its own that many of its builds show to modules and so to plugins, and a way to
 * have it leave deliveries out for a while, before it makes text of them. Who uses this is to try it first.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#ifndef BY_STREAM_ALONE
#define BY_STREAM_ALONE false /* true in a test: as if QEMU did not show that number */
#endif

extern int qemu_loglevel __attribute__((weak));

/* CPU_LOG_INT, and CPU_LOG_PLUGIN, by which it can be tried. */
enum { LEVEL_LEFT_OUT = 1 << 4 | 1 << 18 };

static inline bool level_known(void)
{
    return !BY_STREAM_ALONE && &qemu_loglevel != NULL;
}

/* Have these kinds left out; returns those that were not. */
static inline int level_leave_out(void)
{
    int were = qemu_loglevel & LEVEL_LEFT_OUT;
    qemu_loglevel &= ~LEVEL_LEFT_OUT;
    return were;
}

static inline void level_take_in(int kinds)
{
    qemu_loglevel |= kinds;
}
