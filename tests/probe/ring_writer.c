/*
 * The producer's side of the ring without QEMU: threads that play vCPUs.
 *
 *     ring_writer RING CPUS ROWS EVENTS [wait]
 *
 * Each thread publishes EVENTS rows with value = its own count; with `wait` every 100th row waits for its release.
 * Ends without a word, like a QEMU that leaves, and with the test that started it; the exit status is 0 unless the ring
 * was refused.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/prctl.h>

#include "ring.h"

static ring shared;
static uint64_t events;
static bool with_wait;

static void *run(void *argument)
{
    unsigned cpu = (unsigned)(uintptr_t)argument;

    for (uint64_t n = 1; n <= events; n++) {
        ctx_row *row = ring_reserve(&shared, cpu);
        bool wait = with_wait && n % 100 == 0;
        row->kind = CTX_KIND_ENTRY;
        row->value = n;
        row->rsp = ~n;
        ring_number(&shared, row);
        if (wait) {
            row->flags |= CTX_FLAG_WAITING;
            ring_announce_wait(&shared, cpu, row->seq, false);
        }
        ring_publish(&shared, cpu);
        if (wait) {
            ring_await_release(&shared, cpu);
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[64];

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (argc < 5) {
        return 2;
    }
    unsigned cpus = (unsigned)atoi(argv[2]);
    events = strtoull(argv[4], NULL, 10);
    with_wait = argc > 5;
    if (!ring_open(&shared, argv[1], cpus, (unsigned)atoi(argv[3]), 0, 0)) {
        return 1;
    }
    for (unsigned cpu = 0; cpu < cpus; cpu++) {
        pthread_create(&threads[cpu], NULL, run, (void *)(uintptr_t)cpu);
    }
    for (unsigned cpu = 0; cpu < cpus; cpu++) {
        pthread_join(threads[cpu], NULL);
    }
    return 0;
}
