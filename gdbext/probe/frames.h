/*
 * The hardware frames that are live: pushed by an entry, not yet popped by an iret. An iret that pops a frame in place,
 * with other words than the CPU pushed there, has stores looked at from then on, before its context runs: one that
 * changes a word of such a frame, from further down the stack or from another, is told. So whoever does it again is
 * seen. Not before, for a look at each store costs as much as the guest itself.
 *
 * Bounded, by hash: of two frames in one place the later one counts. Stores that are not near one take no lock.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "ledger.h"

enum { FRAME_PLACES = 1024, FRAME_GRANULES = 4096, FRAME_GRANULE = 8, FRAME_LEAST = 3, FRAME_MOST = 5,
       FRAME_CHANGES = 16 /* told of one: where there are more, its context was left behind, and its stack is in use */ };

typedef struct {
    uint64_t at, end; /* guest virtual; 0: no frame here */
    uint64_t words[FRAME_MOST];
    unsigned changes;   /* told of it */
    uint64_t registers; /* a digest of the interrupted context's general registers but RSP */
    uint64_t space;     /* user code's address space, 0: kernel code */
} live_frame;

static live_frame live_frames[FRAME_PLACES];
static _Atomic uint64_t frame_granules[FRAME_GRANULES]; /* the frame that lies there, as far as hashes tell */
static pthread_mutex_t frame_lock = PTHREAD_MUTEX_INITIALIZER;

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
    f->at = row->frame;
    f->end = end;
    memcpy(f->words, row->stack, words * sizeof(*f->words));
    f->changes = 0;
    f->registers = frame_digest(row);
    f->space = ledger_space(row);
    for (uint64_t granule = row->frame / FRAME_GRANULE; granule * FRAME_GRANULE < end; granule++) {
        atomic_store_explicit(&frame_granules[frame_hash(granule)], row->frame, memory_order_relaxed);
    }
    pthread_mutex_unlock(&frame_lock);
}

static void frames_forget(void)
{
    pthread_mutex_lock(&frame_lock);
    memset(live_frames, 0, sizeof(live_frames));
    pthread_mutex_unlock(&frame_lock);
}

/* The iret of `row` pops a frame. Is it the one that the CPU pushed there, and were words of it changed, and nothing
 * else of the context? An exception that is fixed up goes on at another RIP, in kernel code. All processes may leave from
 * one place, and one of two that were one before may have the other's registers: that is another address space. */
static bool frame_popped(const ctx_row *row)
{
    live_frame *f = frame_place(row->frame);
    bool changed = false;

    pthread_mutex_lock(&frame_lock);
    if (f->at == row->frame) {
        unsigned words = (unsigned)((f->end - row->frame) / row->size);
        for (unsigned i = (row->cs & 3) == 3 ? 0 : 1; i < words && i < FRAME_MOST; i++) {
            changed |= f->words[i] != row->stack[i];
        }
        bool other = f->space && ledger_space(row) && f->space != ledger_space(row);
        changed = changed && !other && f->registers == frame_digest(row);
        f->at = 0;
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
    stands = at && f->at == at;
    for (unsigned i = 0; i < FRAME_LEAST; i++) {
        stands = stands && f->words[i] == stack[i];
    }
    pthread_mutex_unlock(&frame_lock);
    return stands;
}

/* The frame that may lie at `address`, as far as hashes tell. */
static inline uint64_t frame_near(uint64_t address)
{
    return atomic_load_explicit(&frame_granules[frame_hash(address / FRAME_GRANULE)], memory_order_relaxed);
}

/* May a live frame lie at `address`? No in one look for nearly all stores. */
static inline bool frame_may_lie(uint64_t address)
{
    uint64_t at = frame_near(address);
    return address + FRAME_GRANULE - at < FRAME_GRANULE + FRAME_MOST * 8;
}

/* Does a store of `value` change a word of `f`? */
static bool frame_differs(const live_frame *f, uint64_t address, uint64_t value, unsigned size)
{
    uint64_t word = f->end - f->at == FRAME_MOST * 8 ? 8 : 4;

    if (address + size <= f->at || address >= f->end) {
        return false;
    }
    bool whole = size == word && address >= f->at && (address - f->at) % word == 0;
    return !whole || f->words[(address - f->at) / word] != value;
}

/* The live frame of which a store of `value` changes a word; 0: none. `sp`: RSP of the code that stores. Where it lies in
 * the frame or right above, the frame was popped or copied: the stack is used anew, perhaps by an exit for its own. */
static uint64_t frame_changed_by(uint64_t address, uint64_t value, unsigned size, uint64_t sp)
{
    uint64_t at = frame_near(address), changed = 0;
    live_frame *f = frame_place(at);

    pthread_mutex_lock(&frame_lock);
    if (at && f->at == at && frame_differs(f, address, value, size)) {
        if (sp - at <= f->end - at || f->changes++ >= FRAME_CHANGES) {
            f->at = 0;
        } else {
            changed = at;
        }
    }
    pthread_mutex_unlock(&frame_lock);
    return changed;
}
