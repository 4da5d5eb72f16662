/* Starting the other CPUs, with IPIs from the first. */
#include "kernel.h"

/* Interrupt command register (SDM vol. 3, 11.6.1). */
#define LAPIC_ICR_LOW 0x300
#define LAPIC_ICR_HIGH 0x310

#define FW_CFG_SELECTOR 0x510
#define FW_CFG_DATA 0x511
#define FW_CFG_NB_CPUS 5

extern const u8 trampoline_start[], trampoline_end[];
u64 trampoline_stack, trampoline_id; /* for the CPU that is being started */
static volatile u32 cpus_running = 1;

static volatile u32 *lapic(u32 offset) { return (volatile u32 *)(LAPIC_BASE + offset); }

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

/* The others, one after the other, from trampoline.S. */
void other_main(u64 id)
{
    struct cpu *cpu = &cpus[id];
    cpu_init(cpu, id);
    lapic_init();
    make_idle(cpu);
    __atomic_add_fetch(&cpus_running, 1, __ATOMIC_RELEASE);
    lapic_timer_start();
    start_scheduling(cpu);
}
