/* The local APIC: timer, end of interrupt. And the PIT, to calibrate it. */
#include "kernel.h"

/* Register offsets (SDM vol. 3, table 11-1). */
#define LAPIC_EOI 0x0b0
#define LAPIC_SPURIOUS 0x0f0
#define LAPIC_LVT_TIMER 0x320
#define LAPIC_INITIAL 0x380
#define LAPIC_CURRENT 0x390
#define LAPIC_DIVIDE 0x3e0

#define TIMER_PERIODIC 0x20000
#define DIVIDE_BY_16 3

#define PIT_HZ 1193182
#define CALIBRATION (PIT_HZ / 100) /* 10 ms */

static u32 timer_period;

static volatile u32 *lapic(u32 offset) { return (volatile u32 *)(LAPIC_BASE + offset); }

void lapic_eoi(void) { *lapic(LAPIC_EOI) = 0; }

/* The counter of PIT channel 2, which counts down from FFFFh. */
static u32 pit_elapsed(void)
{
    u32 low;
    outb(0x43, 0x80); /* latch */
    low = inb(0x42);
    return 0xffff - (low | (u32)inb(0x42) << 8);
}

/* APIC timer counts per timer interrupt. Both clocks are read, so a late look does no harm. */
static u32 calibrate(void)
{
    u32 elapsed, counted, high;
    outb(0x61, (u8)((inb(0x61) & ~2) | 1)); /* gate on, speaker off */
    outb(0x43, 0xb0);                       /* channel 2, both bytes, mode 0 */
    outb(0x42, 0xff);
    outb(0x42, 0xff);
    *lapic(LAPIC_INITIAL) = 0xffffffff;
    do {
        elapsed = pit_elapsed();
        counted = 0xffffffff - *lapic(LAPIC_CURRENT);
    } while (elapsed < CALIBRATION);
    *lapic(LAPIC_INITIAL) = 0;
    /* counted * (PIT_HZ / HZ) / elapsed; for the 64-bit product 32-bit C code would need a library. */
    __asm__("mull %2; divl %3" : "+a"(counted), "=&d"(high) : "r"(PIT_HZ / HZ), "r"(elapsed) : "cc");
    return counted;
}

void lapic_init(void)
{
    outb(0x21, 0xff); /* both 8259s masked */
    outb(0xa1, 0xff);
    *lapic(LAPIC_SPURIOUS) = 0x100 | VECTOR_SPURIOUS;
    *lapic(LAPIC_DIVIDE) = DIVIDE_BY_16;
    if (!timer_period)
        timer_period = calibrate();
}

void lapic_timer_start(void)
{
    *lapic(LAPIC_LVT_TIMER) = TIMER_PERIODIC | VECTOR_TIMER;
    *lapic(LAPIC_INITIAL) = timer_period;
}
