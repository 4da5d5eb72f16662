/* A leaf function of the kernel's: it calls nothing. Compiled with -mred-zone, see the Makefile. */
#include "kernel.h"

#ifdef BUG_RED_ZONE
/*
 * BUG: the compiler may use 128 bytes below RSP without moving it. In the kernel that is where an interrupt's
 * frame is pushed. Adds some numbers up for some milliseconds; the result is 0, if nobody changes them meanwhile.
 */
u64 leaf_sum(u64 seed)
{
    volatile u64 parts[8];
    u64 sum = 0;

    for (u32 i = 0; i < 8; i++)
        parts[i] = (seed + i) * 0x9e3779b97f4a7c15;
    for (u32 i = 0; i < 1000000; i++)
        sum += parts[i % 8] - (seed + i % 8) * 0x9e3779b97f4a7c15;
    return sum;
}
#endif
