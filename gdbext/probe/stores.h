/*
 * Who stored last: with stores=on every store of kernel code is noted by address, and where an iret resumes what was not
 * interrupted, those into the words below its frame are told: there the general registers lie where a handler saves them
 * on its stack.
 *
 * Bounded, by hash: of two words in one place the later one counts. Without a lock: of two vCPUs that store into one
 * place at once, one's value may be told as the other's; the rules ask for the value that came back.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { STORE_PLACES = 1 << 16, STORE_WORD = 4, STORE_SAVED = 24 /* words below a frame */ };

typedef struct {
    uint64_t at, value, pc, event; /* event: the last one before it */
    unsigned cpu, size;
} last_store;

typedef struct {
    _Atomic uint64_t at, value, pc;
    _Atomic uint64_t when; /* the event's number, and below that CPU and size */
} store_slot;

static store_slot *last_stores; /* NULL: not wanted */

static inline store_slot *store_place(uint64_t word)
{
    return &last_stores[word * 0x9e3779b97f4a7c15ull >> 48];
}

static inline void store_note(uint64_t address, uint64_t value, unsigned size, uint64_t pc, uint64_t event, unsigned cpu)
{
    for (uint64_t word = address / STORE_WORD; word * STORE_WORD < address + size; word++) {
        store_slot *s = store_place(word);
        atomic_store_explicit(&s->at, address, memory_order_relaxed);
        atomic_store_explicit(&s->value, value, memory_order_relaxed);
        atomic_store_explicit(&s->pc, pc, memory_order_relaxed);
        atomic_store_explicit(&s->when, event << 16 | (cpu & 0xff) << 8 | size, memory_order_relaxed);
    }
}

/* The last store that touched the word of `size` bytes at `at`; false: none is known. */
static bool store_last(uint64_t at, unsigned size, last_store *found)
{
    store_slot *s = store_place(at / STORE_WORD);
    uint64_t when = s->when;

    *found = (last_store){s->at, s->value, s->pc, when >> 16, when >> 8 & 0xff, when & 0xff};
    return found->at < at + size && found->at + found->size > at;
}
