/* Nothing but full registers under interrupts: for what is sent from outside, NMIs for example. */
#include "check.h"

static void spinner(int index)
{
    struct regs in, out;

    for (int i = 0; i < 20 * rounds; i++) {
        regs_fill(&in, index * 100 + i);
        in.reg[CX] = 3000000;
        regs_run(&in, &out, op_spin);
        in.reg[CX] = 0;
        regs_check("spinning", &out, &in, 0);
    }
}

void workload_spin(void)
{
    pid_t children[2];

    for (int i = 0; i < 2; i++)
        children[i] = start(spinner, i);
    for (int i = 0; i < 2; i++)
        reap(children[i]);
}
