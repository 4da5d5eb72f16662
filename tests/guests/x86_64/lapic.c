/* The local APIC: timer, end of interrupt, starting the other CPUs. And the PIT, to calibrate it. */
#include "kernel.h"

/* Register offsets (SDM vol. 3, table 11-1). */
#define LAPIC_EOI 0x0b0
#define LAPIC_SPURIOUS 0x0f0
#define LAPIC_ICR_LOW 0x300
#define LAPIC_ICR_HIGH 0x310
#define LAPIC_LVT_TIMER 0x320
#define LAPIC_INITIAL 0x380
#define LAPIC_CURRENT 0x390
#define LAPIC_DIVIDE 0x3e0

#define TIMER_PERIODIC 0x20000
#define DIVIDE_BY_16 3

#define PIT_HZ 1193182
#define CALIBRATION (PIT_HZ / 100) /* 10 ms */

#define FW_CFG_SELECTOR 0x510
#define FW_CFG_DATA 0x511
#define FW_CFG_NB_CPUS 5

volatile u32 cpus_running = 1;
static u32 timer_period;

extern const u8 trampoline_start[], trampoline_end[];
u64 trampoline_stack, trampoline_id; /* for the CPU that is being started */

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
    u32 elapsed, counted;
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
    return (u32)((u64)counted * PIT_HZ / elapsed / HZ);
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

static void send_ipi(u32 destination, u32 command)
{
    *lapic(LAPIC_ICR_HIGH) = destination << 24;
    *lapic(LAPIC_ICR_LOW) = command;
    while (*lapic(LAPIC_ICR_LOW) & 0x1000)
        __asm__ volatile("pause");
}

/* How many CPUs QEMU was started with (its fw_cfg device says). */
static u32 cpu_count(void)
{
    u32 low;
    outw(FW_CFG_SELECTOR, FW_CFG_NB_CPUS);
    low = inb(FW_CFG_DATA);
    low |= (u32)inb(FW_CFG_DATA) << 8;
    return low < MAX_CPUS ? low : MAX_CPUS;
}

/* INIT, SIPI, and wait, one CPU at a time: they share the trampoline. */
void start_other_cpus(void)
{
    u32 count = cpu_count();
    u8 *low = virt(TRAMPOLINE);

    if (count < 2)
        return;
    for (const u8 *p = trampoline_start; p < trampoline_end; p++)
        *low++ = *p;
    for (u32 id = 1; id < count; id++) {
        static u8 boot_stacks[MAX_CPUS][1024] __attribute__((aligned(16)));
        trampoline_stack = (u64)boot_stacks[id] + sizeof boot_stacks[id];
        trampoline_id = id;
        send_ipi(id, 0x4500);                    /* INIT */
        send_ipi(id, 0x4600 | TRAMPOLINE >> 12); /* start-up */
        while (__atomic_load_n(&cpus_running, __ATOMIC_ACQUIRE) <= id)
            __asm__ volatile("pause");
    }
}
