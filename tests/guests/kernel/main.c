/* Start-up. */
#include "kernel.h"

extern void story_main(void), registers_main(void), calls_main(void);
extern void kthread0_main(void), kthread1_main(void);

/* The first CPU, from boot.S: long mode, boot page tables, interrupts off. */
void kernel_main(void)
{
    serial_init();
    paging_init();
    cpu_init(&cpus[0], 0);
    print("guest: start %s\n", style_name); /* from here on an NMI finds its handler */
    lapic_init();

    make_thread("story", story_main, 0, 1);
    make_thread("registers", registers_main, 0, 1);
    make_thread("kthread0", kthread0_main, 0, 0);
    make_thread("calls", calls_main, 0, 1);
    make_thread("registers2", registers_main, 0, 1);
    make_thread("kthread1", kthread1_main, 0, 0);

    start_other_cpus();
    drop_identity_map();
    make_idle(&cpus[0]);
    lapic_timer_start();
    start_scheduling(&cpus[0]);
}
