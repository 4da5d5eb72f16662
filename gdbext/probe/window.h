/*
 * The window for guest memory, the vCPUs' side: the one that the reader names answers its request, at an event or while
 * it stands still, by the memory as it maps it then.
 *
 * The reader has one request at a time: it writes the next one once it has seen the answer before, its number last.
 */
#pragma once

#include "ring.h"

enum { WINDOW_TRIES = 32 };

/* Reads `length` bytes of guest memory at `address`; NULL where it is unmapped. Valid until this thread's next call. */
typedef const uint8_t *(*window_reader)(uint64_t address, size_t length);

/* Is there a request that nobody has answered? */
static inline bool window_is_asked(const ring *r)
{
    return atomic_load_explicit(SHARED(r->memory->asked, uint32_t), memory_order_relaxed) !=
           atomic_load_explicit(SHARED(r->memory->answered, uint32_t), memory_order_relaxed);
}

/* Answer the request if it is to `cpu`. What cannot be read now may be mapped at another event: a kernel with page tables
 * of its own is entered and left under the user's. */
static void window_answer(const ring *r, unsigned cpu, window_reader read)
{
    ring_memory *m = r->memory;
    uint32_t asked = atomic_load_explicit(SHARED(m->asked, uint32_t), memory_order_acquire);

    /* In this order: that the next request is to us is written behind the answer to the one before, which is another's. */
    if (atomic_load_explicit(SHARED(m->cpu, uint32_t), memory_order_acquire) != cpu ||
        asked != atomic_load_explicit(SHARED(m->answered, uint32_t), memory_order_relaxed) + 1 ||
        m->length > sizeof(m->data)) {
        return;
    }
    const uint8_t *bytes = read(m->address, m->length);
    if (!bytes && m->refused++ < WINDOW_TRIES) {
        return;
    }
    m->found = bytes ? m->length : 0;
    if (bytes) {
        memcpy(m->data, bytes, m->found);
    }
    m->refused = 0;
    atomic_store_explicit(SHARED(m->answered, uint32_t), asked, memory_order_release);
}
