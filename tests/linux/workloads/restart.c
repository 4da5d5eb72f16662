/* System calls that signals interrupt: restarted by RIP - 2, by restart_syscall, or ended with EINTR. */
#include "check.h"

#include <poll.h>
#include <time.h>

static volatile sig_atomic_t alarms;

static void on_alarm(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info, (void)context;
    alarms++;
}

static int pipe_ends[2];

static void slow_writer(int count)
{
    struct timespec pause = {0, 15000000};

    for (int i = 0; i < count; i++) {
        nanosleep(&pause, NULL);
        check(write(pipe_ends[1], &i, sizeof i) == sizeof i, "write: %s", strerror(errno));
    }
}

void workload_restart(void)
{
    int count = 40 * rounds, interrupted = 0;

    check(pipe(pipe_ends) == 0, "pipe: %s", strerror(errno));
    pid_t writer = start(slow_writer, count);
    handle(SIGALRM, on_alarm, SA_RESTART);
    tick(3000);
    for (int i = 0; i < count; i++) {
        int value = -1;
        check(read(pipe_ends[0], &value, sizeof value) == sizeof value, "a restarted read: %s", strerror(errno));
        check(value == i, "read %d, not %d", value, i);
    }
    reap(writer);
    /* These two are not restarted, whatever the flag says. (What is left includes the timer's slack of 50 us.) */
    for (int i = 0; i < 10 * rounds || (interrupted < 3 && i < 100 * rounds); i++) {
        struct timespec pause = {0, 20000000}, rest;
        if (nanosleep(&pause, &rest) < 0) {
            check(errno == EINTR && rest.tv_sec == 0 && rest.tv_nsec < 20100000, "nanosleep: %s", strerror(errno));
            interrupted++;
        }
        struct pollfd nothing = {pipe_ends[0], POLLIN, 0};
        int got = poll(&nothing, 1, 20);
        check(got == 0 || (got < 0 && errno == EINTR), "poll gave %d: %s", got, strerror(errno));
    }
    tick(0);
    check(alarms > 20 && interrupted > 2, "only %d signals, %d calls interrupted", (int)alarms, interrupted);
    /* Stopped and continued without a handler: restart_syscall(2) does the rest of the sleep. */
    for (int i = 0; i < 5 * rounds; i++) {
        struct timespec begin, end, pause = {0, 30000000};
        pid_t parent = getpid(), child = fork();
        if (child == 0) {
            struct timespec first = {0, 10000000};
            nanosleep(&first, NULL);
            kill(parent, SIGSTOP);
            nanosleep(&first, NULL);
            kill(parent, SIGCONT);
            _exit(0);
        }
        clock_gettime(CLOCK_MONOTONIC, &begin);
        check(nanosleep(&pause, NULL) == 0, "a sleep that was stopped: %s", strerror(errno));
        clock_gettime(CLOCK_MONOTONIC, &end);
        check((end.tv_sec - begin.tv_sec) * 1000000000ll + end.tv_nsec - begin.tv_nsec >= 30000000, "slept too little");
        reap(child);
    }
}
