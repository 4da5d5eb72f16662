/* Traps and system calls with every register full: int3, icebp, ud2, #GP, #DE, single steps over a call, int 0x80. */
#include "check.h"

static volatile sig_atomic_t traps, steps;
static volatile int expected, skip;
static volatile greg_t place, trapped_at;

static void on_trap(int signal, siginfo_t *info, void *context)
{
    (void)info;
    check(signal == expected, "signal %d where %d was due", signal, expected);
    trapped_at = *context_ip(context);
    if (trapped_at == place) /* a fault: go on behind the instruction */
        *context_ip(context) += skip;
    traps++;
}

static void one_trap(const char *name, void (*op)(void), int signal, int length, unsigned seed)
{
    struct regs in, out;

    regs_fill(&in, seed);
    in.reg[CX] = 0;
    expected = signal;
    skip = length;
    place = (greg_t)op;
    traps = 0;
    regs_run(&in, &out, op);
    regs_check(name, &out, &in, 0);
    check(traps == 1, "%s: %d signals", name, (int)traps);
    check(trapped_at == place || trapped_at == place + length, "%s: reported at %lx", name, (long)trapped_at);
}

static void calls(unsigned seed)
{
    struct regs in, out;

    regs_fill(&in, seed);
    in.reg[AX] = SYS_getpid;
    regs_run(&in, &out, op_syscall);
    regs_check("getpid", &out, &in, SYSCALL_CHANGES);
    check((pid_t)out.reg[AX] == getpid(), "getpid gave %lx", out.reg[AX]);
    in.reg[AX] = 5000; /* there is no such call */
    regs_run(&in, &out, op_syscall);
    regs_check("no such call", &out, &in, SYSCALL_CHANGES);
    check((int)out.reg[AX] == -ENOSYS, "no such call gave %lx", out.reg[AX]);
    in.reg[AX] = 20; /* getpid, as ia32 numbers it */
    regs_run(&in, &out, op_int80);
    regs_check("int 0x80", &out, &in, 1u << AX);
    check((pid_t)out.reg[AX] == getpid(), "int 0x80 gave %lx", out.reg[AX]);
    in.reg[AX] = SYS_sched_yield;
    regs_run(&in, &out, op_syscall);
    regs_check("sched_yield", &out, &in, SYSCALL_CHANGES);
}

#define TF 0x100ul

static void on_step(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info, (void)context;
    steps++;
}

static void step_over_call(unsigned seed)
{
    struct regs in, out;

    regs_fill(&in, seed);
    in.reg[AX] = SYS_getpid;
    in.flags |= TF;
    steps = 0;
    handle(SIGTRAP, on_step, 0);
    regs_run(&in, &out, op_syscall);
    /* Still stepping: the flag goes by an ordinary popf. */
#ifdef __x86_64__
    __asm__ volatile("pushfq; andl $~0x100, (%%rsp); popfq" ::: "memory", "cc");
#else
    __asm__ volatile("pushfl; andl $~0x100, (%%esp); popfl" ::: "memory", "cc");
#endif
    check(steps > 20, "%d steps", (int)steps);
    regs_check("stepping over a call", &out, &in, SYSCALL_CHANGES);
    check((pid_t)out.reg[AX] == getpid(), "getpid gave %lx while stepping", out.reg[AX]);
}

void workload_traps(void)
{
    for (unsigned i = 0; i < 200u * rounds; i++) {
        handle(SIGTRAP, on_trap, 0);
        handle(SIGILL, on_trap, 0);
        handle(SIGSEGV, on_trap, 0);
        handle(SIGFPE, on_trap, 0);
        one_trap("int3", op_int3, SIGTRAP, 1, i);
        one_trap("icebp", op_icebp, SIGTRAP, 1, i);
        one_trap("ud2", op_ud2, SIGILL, 2, i);
        one_trap("hlt", op_hlt, SIGSEGV, 1, i);
        one_trap("div", op_divide, SIGFPE, 2, i);
        calls(i);
        if (i % 10 == 0)
            step_over_call(i);
    }
}
