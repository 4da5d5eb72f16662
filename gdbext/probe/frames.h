/*
 * The hardware frames that are live: pushed by an entry, not yet popped by an iret. An iret that pops a frame in place,
 * with other words than the CPU pushed there, has stores looked at from then on, before its context runs: one that
 * changes a word of such a frame, from further down the stack or from another, is told. So whoever does it again is
 * seen. Not before, for a look at each store costs as much as the guest itself.
 *
 * Bounded, by hash: of two frames in one place the later one counts. Stores look without a lock.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "layout.h"

enum { FRAME_PLACES = 1024, FRAME_GRANULES = 4096, FRAME_GRANULE = 8, FRAME_LEAST = 3, FRAME_MOST = 5,
       FRAME_CHANGES = 16 /* told of one: where there are more, its context was left behind, and its stack is in use */ };

typedef struct {
    _Atomic uint64_t at, end; /* guest virtual; 0: no frame here */
    _Atomic uint64_t words[FRAME_MOST];
    _Atomic unsigned changes; /* told of it */
    uint64_t registers; /* a digest of the interrupted context's general registers but RSP */
} live_frame;

static live_frame live_frames[FRAME_PLACES];
static _Atomic uint64_t frame_granules[FRAME_GRANULES]; /* the frame that lies there, as far as hashes tell */
static pthread_mutex_t frame_lock = PTHREAD_MUTEX_INITIALIZER;

#define RELAXED(object) atomic_load_explicit(&(object), memory_order_relaxed)
#define RELAX(object, value) atomic_store_explicit(&(object), value, memory_order_relaxed)

static inline uint64_t frame_hash(uint64_t value)
{
    return value * 0x9e3779b97f4a7c15ull >> 52;
}

static inline live_frame *frame_place(uint64_t at)
{
    return &live_frames[frame_hash(at) % FRAME_PLACES];
}

static uint64_t frame_digest(const ctx_row *row)
{
    const uint64_t *general = (const uint64_t *)((uintptr_t)row + offsetof(ctx_row, rax));
    uint64_t digest = 0;

    for (unsigned i = 0; i < 16; i++) {
        digest = (digest ^ (&general[i] == &row->rsp ? 0 : general[i])) * 0xff51afd7ed558ccdull;
        digest ^= digest >> 32;
    }
    return digest;
}

/* The entry `row` has pushed a frame. */
static void frame_pushed(const ctx_row *row)
{
    unsigned words = row->flags & CTX_FLAG_NO_STACK ? FRAME_LEAST : FRAME_MOST, size = row->mode / 8;
    uint64_t end = row->frame + (uint64_t)words * size;
    live_frame *f = frame_place(row->frame);

    pthread_mutex_lock(&frame_lock);
    RELAX(f->at, 0);
    RELAX(f->end, end);
    for (unsigned i = 0; i < words; i++) {
        RELAX(f->words[i], row->stack[i]);
    }
    RELAX(f->changes, 0);
    f->registers = frame_digest(row);
    RELAX(f->at, row->frame);
    for (uint64_t granule = row->frame / FRAME_GRANULE; granule * FRAME_GRANULE < end; granule++) {
        RELAX(frame_granules[frame_hash(granule)], row->frame);
    }
    pthread_mutex_unlock(&frame_lock);
}

/* The iret of `row` pops a frame. Is it the one that the CPU pushed there, and were words of it changed, and nothing
 * else of the context? An exception that is fixed up goes on at another RIP, in kernel code. */
static bool frame_popped(const ctx_row *row)
{
    live_frame *f = frame_place(row->frame);
    bool changed = false;

    pthread_mutex_lock(&frame_lock);
    if (RELAXED(f->at) == row->frame) {
        unsigned words = (unsigned)((RELAXED(f->end) - row->frame) / row->size);
        for (unsigned i = (row->cs & 3) == 3 ? 0 : 1; i < words && i < FRAME_MOST; i++) {
            changed |= RELAXED(f->words[i]) != row->stack[i];
        }
        changed = changed && f->registers == frame_digest(row);
        RELAX(f->at, 0);
    }
    pthread_mutex_unlock(&frame_lock);
    return changed;
}

/* Is what lies at `at`, the words `stack`, a live frame as the CPU pushed it? */
static bool frame_stands(uint64_t at, const uint64_t *stack)
{
    live_frame *f = frame_place(at);
    bool stands;

    pthread_mutex_lock(&frame_lock);
    stands = at && RELAXED(f->at) == at;
    for (unsigned i = 0; i < FRAME_LEAST; i++) {
        stands = stands && RELAXED(f->words[i]) == stack[i];
    }
    pthread_mutex_unlock(&frame_lock);
    return stands;
}

/* May a live frame lie at `address`? No in one look for nearly all stores. */
static inline bool frame_may_lie(uint64_t address)
{
    uint64_t at = RELAXED(frame_granules[frame_hash(address / FRAME_GRANULE)]);
    return address + FRAME_GRANULE - at < FRAME_GRANULE + FRAME_MOST * 8;
}

/* The live frame of which a store of `value` changes a word; 0: none. `sp`: RSP of the code that stores. Where it lies in
 * the frame or right above, the frame was popped or copied: the stack is used anew, perhaps by an exit for its own. */
static uint64_t frame_changed_by(uint64_t address, uint64_t value, unsigned size, uint64_t sp)
{
    uint64_t at = RELAXED(frame_granules[frame_hash(address / FRAME_GRANULE)]);
    live_frame *f = frame_place(at);
    uint64_t end = RELAXED(f->end), word = end - at == FRAME_MOST * 8 ? 8 : 4;

    if (!at || RELAXED(f->at) != at || address + size <= at || address >= end) {
        return 0;
    }
    bool whole = size == word && address >= at && (address - at) % word == 0;
    if (whole && RELAXED(f->words[(address - at) / word]) == value) {
        return 0;
    }
    if (sp - at <= end - at || atomic_fetch_add_explicit(&f->changes, 1, memory_order_relaxed) >= FRAME_CHANGES) {
        RELAX(f->at, 0);
        return 0;
    }
    return at;
}
