/* ptrace: single steps, registers written, system calls stopped at, breakpoints in the tracee's code. */
#include "check.h"

#include <sys/ptrace.h>
#include <sys/user.h>

#ifdef __x86_64__
#define IP rip
#define MARK r13
#define RESULT rax
enum { MARKED = R13 };
#else
#define IP eip
#define MARK esi
#define RESULT eax
enum { MARKED = SI };
#endif

enum { STEPS = 300, SPIN = 100000 };

static void tracee(int index)
{
    struct regs in, out, want;

    ptrace(PTRACE_TRACEME, 0, 0, 0);
    raise(SIGSTOP); /* 1: the tracer steps from here, then writes the marked register in the loop */
    regs_fill(&in, index);
    want = in;
    in.reg[CX] = want.reg[CX] = SPIN;
    regs_run(&in, &out, op_spin);
    want.reg[CX] = 0;
    want.reg[MARKED] = ~in.reg[MARKED];
    regs_check("the tracee", &out, &want, 0);
    raise(SIGSTOP); /* 2: the tracer puts a breakpoint on op_hlt and catches it there */
    op_hlt();
    long result = syscall(SYS_getppid); /* 3: the tracer changes what this gives */
    check(result == 4242, "the traced call gave %ld", result);
}

static void wait_stop(pid_t child, int wanted)
{
    int status;

    check(waitpid(child, &status, 0) == child, "waitpid: %s", strerror(errno));
    check(WIFSTOPPED(status) && WSTOPSIG(status) == wanted, "status %x where signal %d was due", status, wanted);
}

static void request(int what, pid_t child, unsigned long data)
{
    check(ptrace(what, child, 0, data) == 0, "ptrace(%d): %s", what, strerror(errno));
}

static struct user_regs_struct registers(pid_t child)
{
    struct user_regs_struct regs;

    request(PTRACE_GETREGS, child, (unsigned long)&regs);
    return regs;
}

static void step_through(pid_t child)
{
    int in_loop = 0, marked = 0;

    for (int i = 0; i < 100 * STEPS && in_loop < STEPS; i++) {
        request(PTRACE_SINGLESTEP, child, 0);
        wait_stop(child, SIGTRAP);
        struct user_regs_struct regs = registers(child);
        if ((uintptr_t)regs.IP != (uintptr_t)op_spin)
            continue;
        if (!marked++) {
            regs.MARK = ~regs.MARK;
            request(PTRACE_SETREGS, child, (unsigned long)&regs);
        }
        in_loop++;
    }
    check(in_loop == STEPS, "the steps never came into the loop");
    struct user_regs_struct regs = registers(child);
    regs.eflags &= ~0x100; /* TF: since it was stepped over a popf, the kernel takes it for the tracee's own */
    request(PTRACE_SETREGS, child, (unsigned long)&regs);
    request(PTRACE_CONT, child, 0);
    wait_stop(child, SIGSTOP);
}

static void catch_breakpoint(pid_t child)
{
    void *place = (void *)op_hlt;
    long old = ptrace(PTRACE_PEEKTEXT, child, place, 0);

    check(ptrace(PTRACE_POKETEXT, child, place, (old & ~0xfful) | 0xcc) == 0, "poke: %s", strerror(errno));
    request(PTRACE_CONT, child, 0);
    wait_stop(child, SIGTRAP);
    struct user_regs_struct regs = registers(child);
    check((uintptr_t)regs.IP == (uintptr_t)op_hlt + 1, "the breakpoint stopped at %lx", (unsigned long)regs.IP);
}

static void change_result(pid_t child)
{
    for (int i = 0; i < 20; i++) {
        request(PTRACE_SYSCALL, child, 0);
        wait_stop(child, SIGTRAP);
        struct user_regs_struct regs = registers(child);
#ifdef __x86_64__
        unsigned long number = regs.orig_rax;
#else
        unsigned long number = regs.orig_eax;
#endif
        if (number != SYS_getppid)
            continue;
        request(PTRACE_SYSCALL, child, 0); /* now at the call's end */
        wait_stop(child, SIGTRAP);
        regs = registers(child);
        check((long)regs.RESULT == getpid(), "the call's end shows %ld", (long)regs.RESULT);
        regs.RESULT = 4242;
        request(PTRACE_SETREGS, child, (unsigned long)&regs);
        request(PTRACE_CONT, child, 0);
        return;
    }
    fail("the call was never seen");
}

void workload_tracing(void)
{
    for (int i = 0; i < 5 * rounds; i++) {
        pid_t child = start(tracee, i);
        wait_stop(child, SIGSTOP);
        step_through(child);
        catch_breakpoint(child);
        change_result(child);
        reap(child);
    }
}
