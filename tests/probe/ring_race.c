/*
 * Ring, ledger and memory window under several vCPUs and a reader, all threads of one program, so that a thread sanitizer
 * sees both sides of everything they share.
 *
 *     ring_race RING CPUS ROWS EVENTS
 *
 * Each vCPU interrupts and resumes one context EVENTS times: an entry, then an exit that must be identical. Every 50th
 * exit waits for its release. The reader checks that each vCPU's rows come in order and that no number is missing, and
 * asks one vCPU after the other for memory all the time: the answer must be that one's, and to this request. The exit
 * status is 0 when all was right.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdbool.h>

#include "ring.h"
#include "ledger.h"
#include "window.h"

enum { MOST_CPUS = 64, WAIT_EVERY = 50, UNMAPPED_EVERY = 5, LENGTHS = 64 };

static ring shared;
static unsigned cpus;
static uint64_t events;
static uint32_t answers;
static atomic_uint wrong;

static void expect(bool holds, const char *what, uint64_t n)
{
    if (!holds) {
        atomic_fetch_add(&wrong, 1);
        fprintf(stderr, "ring_race: %s at %llu\n", what, (unsigned long long)n);
    }
}

static ctx_row *prepare(unsigned cpu, uint8_t kind, uint64_t n)
{
    ctx_row *row = ring_reserve(&shared, cpu);
    row->kind = kind;
    row->value = n;
    row->rip = 0x1000 + n % 7;
    row->rsp = 0x10000 * (uint64_t)(cpu + 1); /* in CPUs' ledger entries, what tells them apart */
    row->rax = n / 2;
    row->rflags = 2;
    row->cs = 8;
    return row;
}

/* What memory holds at `address`, as `cpu` maps it. */
static uint8_t byte_at(unsigned cpu, uint64_t address)
{
    return (uint8_t)(address * 31 + cpu * 101);
}

static _Thread_local unsigned running;

static const uint8_t *read_memory(uint64_t address, size_t length)
{
    static _Thread_local uint8_t bytes[RING_PAGE];

    for (size_t i = 0; i < length; i++) {
        bytes[i] = byte_at(running, address + i);
    }
    return address % UNMAPPED_EVERY ? bytes : NULL;
}

static void answer(unsigned cpu)
{
    window_answer(&shared, cpu, read_memory);
}

static void publish(unsigned cpu)
{
    ring_publish(&shared, cpu);
    if (window_is_asked(&shared)) {
        answer(cpu);
    }
}

static void *run_vcpu(void *argument)
{
    unsigned cpu = running = (unsigned)(uintptr_t)argument;

    for (uint64_t n = 0; n < 2 * events; n += 2) {
        ctx_row *row = prepare(cpu, CTX_KIND_ENTRY, n);
        uint64_t rip = row->rip;
        ring_number(&shared, row);
        uint64_t seq = row->seq;
        ledger_add(row, NULL);
        publish(cpu);

        row = prepare(cpu, CTX_KIND_EXIT, n + 1);
        row->rip = rip;
        ledger_resume(row, NULL);
        expect((row->flags & CTX_FLAG_IDENTICAL) && row->match == seq, "not identical", n);
        ring_number(&shared, row);
        bool wait = n / 2 % WAIT_EVERY == WAIT_EVERY - 1;
        if (wait) {
            row->flags |= CTX_FLAG_WAITING;
            ring_announce_wait(&shared, cpu, row->seq, false);
        }
        publish(cpu);
        if (wait) {
            expect(ring_await_release(&shared, cpu) == RING_RELEASE_GO, "not released", n);
        }
    }
    return NULL;
}

/* Check the answer that has come, and ask for something else: as gdbext/sources/probe.py does it. Returns how many
 * answers there were so far. */
static uint32_t ask(void)
{
    ring_memory *m = shared.memory;
    uint32_t asked = m->asked;

    if (atomic_load_explicit(SHARED(m->answered, uint32_t), memory_order_acquire) != asked) {
        return asked - 1;
    }
    expect(asked == 0 || m->found == (m->address % UNMAPPED_EVERY ? m->length : 0), "another request's answer", asked);
    for (uint32_t i = 0; i < m->found; i++) {
        expect(m->data[i] == byte_at(m->cpu, m->address + i), "another's memory", asked);
    }
    m->address = 7 * (uint64_t)asked;
    m->length = 1 + asked % LENGTHS;
    atomic_store_explicit(SHARED(m->cpu, uint32_t), (asked + 1) % cpus, memory_order_release);
    atomic_store_explicit(SHARED(m->asked, uint32_t), asked + 1, memory_order_release);
    return asked;
}

/* Returns the sum of the numbers of all rows. */
static uint64_t read_all(void)
{
    uint64_t next[MOST_CPUS] = {0}, left = 2 * events * cpus, sum = 0;

    while (left > 0) {
        answers = ask();
        for (unsigned cpu = 0; cpu < cpus; cpu++) {
            ring_control *c = ring_cpu(&shared, cpu);
            uint64_t head = atomic_load_explicit(SHARED(c->head, uint64_t), memory_order_acquire), tail = c->tail;
            for (; tail != head; tail++, left--) {
                const ctx_row *row =
                    (ctx_row *)(shared.rows + (cpu * (shared.mask + 1) + (tail & shared.mask)) * shared.row_size);
                expect(row->cpu == cpu && row->value == next[cpu]++, "out of order", row->value);
                sum += row->seq;
                if (row->flags & CTX_FLAG_WAITING) {
                    uint32_t ticket = (uint32_t)row->seq << RING_TICKET_SHIFT;
                    atomic_store_explicit(SHARED(c->release, uint32_t), ticket | RING_RELEASE_GO, memory_order_release);
                }
            }
            atomic_store_explicit(SHARED(c->tail, uint64_t), tail, memory_order_release);
        }
    }
    return sum;
}

int main(int argc, char **argv)
{
    pthread_t threads[MOST_CPUS];
    struct flock lock = ring_lock_of(F_WRLCK, RING_READER_LOCK);

    if (argc != 5 || (cpus = (unsigned)atoi(argv[2])) > MOST_CPUS) {
        return 2;
    }
    events = strtoull(argv[4], NULL, 10);
    if (!ring_open(&shared, argv[1], cpus, (unsigned)atoi(argv[3]), 0, 0)) {
        return 2;
    }
    int reader = open(argv[1], O_RDWR | O_CLOEXEC);
    if (reader < 0 || fcntl(reader, F_OFD_SETLK, &lock) != 0) {
        return 2;
    }
    shared.header->present = 1;
    shared.meanwhile = answer;
    ledger_init();
    for (unsigned cpu = 0; cpu < cpus; cpu++) {
        pthread_create(&threads[cpu], NULL, run_vcpu, (void *)(uintptr_t)cpu);
    }
    uint64_t rows = 2 * events * cpus, sum = read_all();
    for (unsigned cpu = 0; cpu < cpus; cpu++) {
        pthread_join(threads[cpu], NULL);
        expect(ring_cpu(&shared, cpu)->overwritten == 0, "overwritten", cpu);
    }
    expect(sum == rows * (rows + 1) / 2, "a number is missing", sum);
    expect(answers > cpus, "hardly an answer", answers);
    return wrong != 0;
}
