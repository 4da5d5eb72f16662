/*
 * The contexts that were interrupted and are not yet resumed, over all vCPUs, and the one question asked of them: is
 * the context about to be resumed bit for bit the one that was interrupted?
 *
 * Keyed by RIP, RSP and, for user code, the address space. A new entry at the same key replaces the old one: that
 * stack has moved on. Bounded: when all places are taken the oldest entry goes; the rules, which keep a ledger of
 * their own and judge what is not identical, then merely have more to do. Places are handed out last in, first out, so
 * that the few in use stay in the host's cache.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "layout.h"

enum { LEDGER_PLACES = 8192, LEDGER_BUCKETS = 16384, LEDGER_NONE = LEDGER_PLACES, RFLAGS_RF = 1 << 16 };

#define CR3_TABLES 0x000ffffffffff000ull /* as gdbext/arch/addresses.py says and why */

typedef struct {
    uint64_t seq;
    uint64_t rip, rsp, space;
    uint64_t gpr[16];
    uint64_t rflags, fs_base, gs_base;
    uint16_t cs, ss, ds, es, fs, gs;
    uint8_t how;
    bool kernel_gs;
    uint32_t mxcsr;
    uint16_t next;         /* in the bucket, or among the free ones */
    uint16_t older, newer; /* by age */
} ledger_entry;

static ledger_entry ledger[LEDGER_PLACES];
static ctx_simd ledger_simd[LEDGER_PLACES]; /* apart: seldom wanted */
static uint16_t ledger_bucket[LEDGER_BUCKETS];
static uint16_t ledger_free, ledger_oldest = LEDGER_NONE, ledger_newest = LEDGER_NONE;
static pthread_mutex_t ledger_lock = PTHREAD_MUTEX_INITIALIZER;

static void ledger_init(void)
{
    ledger_free = 0;
    ledger_oldest = ledger_newest = LEDGER_NONE;
    for (unsigned i = 0; i < LEDGER_PLACES; i++) {
        ledger[i].next = (uint16_t)(i + 1); /* the last one's is LEDGER_NONE */
    }
    for (unsigned i = 0; i < LEDGER_BUCKETS; i++) {
        ledger_bucket[i] = LEDGER_NONE;
    }
}

/* Is it user code's context, at CPL 3? */
static bool is_users(const ctx_row *row)
{
    enum { VM = 1 << 17 };
    return (row->cs & 3) == 3 || (row->rflags & VM);
}

static uint64_t ledger_space(const ctx_row *row)
{
    return is_users(row) ? row->cr3 & CR3_TABLES : 0;
}

static uint16_t *ledger_bucket_of(uint64_t rip, uint64_t rsp, uint64_t space)
{
    uint64_t hash = (rip ^ rsp * 0x9e3779b97f4a7c15ull ^ space >> 9) * 0xff51afd7ed558ccdull;
    return &ledger_bucket[hash >> 50];
}

/* The link that leads to the entry of this key: in its bucket or in the entry before it. To LEDGER_NONE: no entry. */
static uint16_t *ledger_find(uint64_t rip, uint64_t rsp, uint64_t space)
{
    uint16_t *link = ledger_bucket_of(rip, rsp, space);
    while (*link != LEDGER_NONE) {
        const ledger_entry *e = &ledger[*link];
        if (e->rip == rip && e->rsp == rsp && e->space == space) {
            break;
        }
        link = &ledger[*link].next;
    }
    return link;
}

static void ledger_remove(uint16_t *link)
{
    uint16_t place = *link;
    ledger_entry *e = &ledger[place];

    *link = e->next;
    *(e->older == LEDGER_NONE ? &ledger_oldest : &ledger[e->older].newer) = e->newer;
    *(e->newer == LEDGER_NONE ? &ledger_newest : &ledger[e->newer].older) = e->older;
    e->next = ledger_free;
    ledger_free = place;
}

/* A place for a new entry of this key, the newest of all. */
static ledger_entry *ledger_place(uint64_t rip, uint64_t rsp, uint64_t space)
{
    uint16_t *link = ledger_find(rip, rsp, space);

    if (*link != LEDGER_NONE) {
        ledger_remove(link);
    } else if (ledger_free == LEDGER_NONE) {
        const ledger_entry *oldest = &ledger[ledger_oldest];
        ledger_remove(ledger_find(oldest->rip, oldest->rsp, oldest->space));
    }
    uint16_t place = ledger_free;
    ledger_entry *e = &ledger[place];
    uint16_t *bucket = ledger_bucket_of(rip, rsp, space);
    ledger_free = e->next;
    e->next = *bucket;
    *bucket = place;
    e->newer = LEDGER_NONE;
    e->older = ledger_newest;
    *(ledger_newest == LEDGER_NONE ? &ledger_oldest : &ledger[ledger_newest].newer) = place;
    ledger_newest = place;
    e->rip = rip, e->rsp = rsp, e->space = space;
    return e;
}

/* All that was interrupted is another time's. */
static void ledger_forget(void)
{
    pthread_mutex_lock(&ledger_lock);
    ledger_init();
    pthread_mutex_unlock(&ledger_lock);
}

static void ledger_add(const ctx_row *row, const ctx_simd *simd)
{
    pthread_mutex_lock(&ledger_lock);
    ledger_entry *e = ledger_place(row->rip, row->rsp, ledger_space(row));
    e->seq = row->seq;
    memcpy(e->gpr, (const uint8_t *)row + offsetof(ctx_row, rax), sizeof(e->gpr));
    e->rflags = row->rflags, e->fs_base = row->fs_base, e->gs_base = row->gs_base;
    e->cs = row->cs, e->ss = row->ss, e->ds = row->ds, e->es = row->es, e->fs = row->fs, e->gs = row->gs;
    e->how = row->how;
    e->kernel_gs = row->flags & CTX_FLAG_PARITY_KERNEL;
    if (simd) {
        ledger_simd[e - ledger] = *simd;
        e->mxcsr = row->mxcsr;
    }
    pthread_mutex_unlock(&ledger_lock);
}

/* Only that which an execution can see counts, and of a system call only what its ABI promises. */
static bool ledger_same(const ledger_entry *e, const ctx_row *row, const ctx_simd *simd)
{
    enum { RAX, RCX, R11 = 11 };
    uint32_t may_change = 0;
    bool by_call = e->how == CTX_HOW_SYSCALL || e->how == CTX_HOW_SYSENTER;
    bool user = is_users(row), small = row->flags & CTX_FLAG_LINEAR32;
    const uint64_t *gpr = (const uint64_t *)((uintptr_t)row + offsetof(ctx_row, rax));

    if (by_call) {
        may_change = 1u << RAX | 1u << RCX | 1u << R11;
    } else if (e->how == CTX_HOW_SOFT) {
        may_change = 1u << RAX;
    }
    for (unsigned i = 0; i < 16; i++) {
        if (gpr[i] != e->gpr[i] && !(may_change >> i & 1)) {
            return false;
        }
    }
    if ((row->rflags ^ e->rflags) & ~(uint64_t)RFLAGS_RF) {
        return false;
    }
    if (row->cs != e->cs || row->ss != e->ss) {
        return false;
    }
    if (small && (row->ds != e->ds || row->es != e->es)) {
        return false;
    }
    if ((user || small) && (row->fs != e->fs || row->gs != e->gs)) {
        return false;
    }
    if (!!(row->flags & CTX_FLAG_PARITY_KERNEL) != e->kernel_gs) {
        return false;
    }
    if (user) {
        /* In kernel code FS base, inactive GS base and FPU registers are the user context's, which it may not
         * leave alone; judged at the next return to user mode. */
        if (row->fs_base != e->fs_base || row->gs_base != e->gs_base || (row->flags & CTX_FLAG_PARITY_KERNEL)) {
            return false;
        }
        if (simd && !(row->flags & CTX_FLAG_FPU_OFF) &&
            (row->mxcsr != e->mxcsr || memcmp(simd, &ledger_simd[e - ledger], sizeof(*simd)) != 0)) {
            return false;
        }
    }
    return true;
}

/* The entry that interrupted kernel code there, which is not resumed yet; 0: none. */
static uint64_t ledger_waits(uint64_t rip, uint64_t rsp)
{
    pthread_mutex_lock(&ledger_lock);
    uint16_t place = *ledger_find(rip, rsp, 0);
    uint64_t seq = place == LEDGER_NONE ? 0 : ledger[place].seq;
    pthread_mutex_unlock(&ledger_lock);
    return seq;
}

/* Take the entry that `row` resumes out of the ledger; sets `match` and, where nothing differs, the flag. */
static void ledger_resume(ctx_row *row, const ctx_simd *simd)
{
    pthread_mutex_lock(&ledger_lock);
    uint16_t *link = ledger_find(row->rip, row->rsp, ledger_space(row));
    if (*link != LEDGER_NONE) {
        const ledger_entry *e = &ledger[*link];
        row->match = e->seq;
        if (!(row->flags & CTX_FLAG_FLAGS_PARTIAL) && ledger_same(e, row, simd)) {
            row->flags |= CTX_FLAG_IDENTICAL;
        }
        ledger_remove(link);
    }
    pthread_mutex_unlock(&ledger_lock);
}
