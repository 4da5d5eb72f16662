/* workloads NAME...: run each beside a spinning process for each CPU, so that the timer preempts it; say how it went.
 *
 * Prints `workload NAME ok` or `workload NAME FAILED what`.
 */
#include "check.h"

#ifdef __x86_64__
#include <asm/prctl.h>
#endif
#include <sys/auxv.h>
#include <termios.h>

#define WORKLOADS(each)                                                                                               \
    each(files) each(forks) each(signals) each(restart) each(tracing) each(bases) each(extable) each(traps)           \
        each(simd) each(futex) each(segments) each(rseq) each(probes) each(hotplug) each(spin)

#define DECLARE(name) void workload_##name(void);
WORKLOADS(DECLARE)

static const struct {
    const char *name;
    void (*body)(void);
} workloads[] = {
#define ENTRY(name) {#name, workload_##name},
    WORKLOADS(ENTRY)};

enum { MOST_CPUS = 8 };

static void (*current)(void);

static void run_current(int index)
{
    (void)index;
    current();
}

#ifdef __x86_64__
/* With a GS base of its own, so that every switch to it has one to write. It ends if it has lost it. */
static void burn(int index)
{
    unsigned long own = index + 1, is;

    check(syscall(SYS_arch_prctl, ARCH_SET_GS, &own) == 0, "ARCH_SET_GS: %s", strerror(errno));
    do
        __asm__ volatile("mov %%gs:0, %0" : "=r"(is) : "m"(own));
    while (is == own);
}
#else
static void burn(int index)
{
    (void)index;
    for (;;)
        __asm__ volatile("");
}
#endif

static int run(unsigned number)
{
    char said[256] = "";
    int length = 0, got, status, ended, pipe_ends[2];
    int cpus = sysconf(_SC_NPROCESSORS_ONLN);
    pid_t child, burners[MOST_CPUS];

    if (cpus > MOST_CPUS)
        cpus = MOST_CPUS;
    for (int i = 0; i < cpus; i++)
        burners[i] = start(burn, i);
    if (pipe(pipe_ends) < 0)
        return 1;
    child = fork();
    if (child == 0) {
        close(pipe_ends[0]);
        dup2(pipe_ends[1], 1);
        close(pipe_ends[1]);
        current = workloads[number].body;
        reap(start(run_current, 0)); /* a death by signal is told like any failure */
        _exit(0);
    }
    close(pipe_ends[1]);
    while (length < (int)sizeof said - 1 && (got = read(pipe_ends[0], said + length, sizeof said - 1 - length)) > 0)
        length += got;
    close(pipe_ends[0]);
    waitpid(child, &status, 0);
    for (int i = 0; i < cpus; i++) {
        kill(burners[i], SIGKILL);
        waitpid(burners[i], &ended, 0);
        if (!WIFSIGNALED(ended) || WTERMSIG(ended) != SIGKILL)
            snprintf(said, sizeof said, "a spinning process ended by itself, status %x", ended);
    }
    said[strcspn(said, "\n")] = 0;
    if (status && !said[0])
        strcpy(said, "without a word");
    if (said[0])
        printf("workload %s FAILED %s\n", workloads[number].name, said);
    else
        printf("workload %s ok\n", workloads[number].name);
    fflush(stdout);
    return said[0] != 0;
}

int main(int argc, char **argv)
{
    int failed = 0;

    if (argc == 3 && strcmp(argv[1], "--child") == 0) /* what `forks` executes */
        return atoi(argv[2]);
    if (argc == 2 && strcmp(argv[1], "--drain") == 0)
        return tcdrain(1) < 0;
    if (getenv("rounds"))
        rounds = atoi(getenv("rounds"));
#ifndef __x86_64__
    extern unsigned long native_call;
    if (getauxval(AT_SYSINFO))
        native_call = getauxval(AT_SYSINFO);
#endif
    for (int i = 1; i < argc; i++) {
        unsigned number = 0;
        while (number < sizeof workloads / sizeof *workloads && strcmp(argv[i], workloads[number].name))
            number++;
        if (number == sizeof workloads / sizeof *workloads) {
            printf("workload %s FAILED there is none of that name\n", argv[i]);
            failed = 1;
        } else {
            failed |= run(number);
        }
    }
    return failed;
}
