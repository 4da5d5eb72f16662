/* fork, vfork and exec, many; memory copied on write; a forked child has its parent's registers. */
#include "check.h"

static char page[3 * 4096];

static void writer(int index)
{
    for (unsigned i = 0; i < sizeof page; i++) {
        check(page[i] == (char)i, "byte %u is not what the parent left there", i);
        page[i] = index;
    }
}

static void fork_with_full_registers(unsigned seed)
{
    struct regs in, out;

    regs_fill(&in, seed);
    in.reg[AX] = SYS_fork;
    regs_run(&in, &out, op_syscall); /* glibc's fork would not keep the registers full */
    if (out.reg[AX] == 0) {
        regs_check("fork's child", &out, &in, SYSCALL_CHANGES);
        _exit(7);
    }
    int status;
    regs_check("fork's parent", &out, &in, SYSCALL_CHANGES);
    check(waitpid(out.reg[AX], &status, 0) == (pid_t)out.reg[AX] && WEXITSTATUS(status) == 7, "status %x", status);
}

static void executed(int number)
{
    char text[12];
    int status;

    snprintf(text, sizeof text, "%d", number);
    pid_t child = vfork();
    if (child == 0) {
        execl("/proc/self/exe", "workloads", "--child", text, NULL);
        _exit(99);
    }
    check(child > 0 && waitpid(child, &status, 0) == child, "vfork: %s", strerror(errno));
    check(WIFEXITED(status) && WEXITSTATUS(status) == number, "exec gave status %x, not %d", status, number);
}

void workload_forks(void)
{
    for (unsigned i = 0; i < sizeof page; i++)
        page[i] = i;
    for (int i = 0; i < 40 * rounds; i++) {
        pid_t children[3];
        for (int j = 0; j < 3; j++)
            children[j] = start(writer, i + j);
        executed(i % 90);
        for (int j = 0; j < 3; j++)
            reap(children[j]);
        fork_with_full_registers(i);
    }
}
