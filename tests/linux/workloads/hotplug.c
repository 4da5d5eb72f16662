/* CPUs that are taken away and come back, where there is more than one: what runs there goes on elsewhere. */
#include "check.h"

#include <fcntl.h>

#define ONLINE "/sys/devices/system/cpu/cpu%d/online"
enum { MOST_CPUS = 8 };

static void run_on(int index)
{
    struct regs in, out;

    for (unsigned i = 0;; i++) {
        regs_fill(&in, index * 1000 + i);
        in.reg[CX] = 100000;
        regs_run(&in, &out, op_spin);
        in.reg[CX] = 0;
        regs_check("moved about", &out, &in, 0);
    }
}

static int switched(int cpu, const char *to)
{
    char path[60];
    int file, done;

    snprintf(path, sizeof path, ONLINE, cpu);
    file = open(path, O_WRONLY);
    if (file < 0)
        return 0;
    done = write(file, to, 1) == 1;
    check(done, "%s to %s: %s", path, to, strerror(errno));
    close(file);
    return done;
}

void workload_hotplug(void)
{
    pid_t children[2];
    int status;

    for (int i = 0; i < 2; i++)
        children[i] = start(run_on, i);
    for (int round = 0; round < 3 * rounds; round++) {
        int cpu = 1;
        while (cpu < MOST_CPUS && switched(cpu, "0"))
            cpu++;
        usleep(50000);
        while (--cpu > 0)
            switched(cpu, "1");
        usleep(50000);
    }
    for (int i = 0; i < 2; i++) {
        kill(children[i], SIGKILL);
        check(waitpid(children[i], &status, 0) == children[i], "waitpid: %s", strerror(errno));
        check(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "it ended with status %x", status);
    }
}
