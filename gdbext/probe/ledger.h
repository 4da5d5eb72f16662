/*
 * The contexts that were interrupted and are not yet resumed, over all vCPUs, and the one question asked of them: is
 * the context about to be resumed bit for bit the one that was interrupted?
 *
 * Keyed by RIP, RSP and, for user code, the address space. A new entry at the same key replaces the old one: that
 * stack has moved on. Bounded: where a set is full its oldest entry goes; the rules, which keep a ledger of their own
 * and judge what is not identical, then merely have more to do.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "layout.h"

enum { LEDGER_SETS = 2048, LEDGER_WAYS = 8, RFLAGS_RF = 1 << 16 };

#define CR3_ADDRESS_SPACE 0x000fffffffffe000ull /* as gdbext/arch/addresses.py says and why */

typedef struct {
    uint64_t seq; /* 0: free */
    uint64_t rip, rsp, space;
    uint64_t gpr[16];
    uint64_t rflags, fs_base, gs_base;
    uint16_t cs, ss, ds, es, fs, gs;
    uint8_t how;
    bool kernel_gs;
    ctx_simd simd;
    uint32_t mxcsr;
} ledger_entry;

static ledger_entry ledger[LEDGER_SETS][LEDGER_WAYS];
static pthread_mutex_t ledger_lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t ledger_space(const ctx_row *row)
{
    return (row->cs & 3) == 3 ? row->cr3 & CR3_ADDRESS_SPACE : 0;
}

static ledger_entry *ledger_set(uint64_t rip, uint64_t rsp, uint64_t space)
{
    uint64_t hash = (rip ^ rsp * 0x9e3779b97f4a7c15ull ^ space >> 9) * 0xff51afd7ed558ccdull;
    return ledger[hash >> 40 & (LEDGER_SETS - 1)];
}

static ledger_entry *ledger_find(const ctx_row *row, uint64_t space)
{
    ledger_entry *set = ledger_set(row->rip, row->rsp, space);
    for (unsigned way = 0; way < LEDGER_WAYS; way++) {
        ledger_entry *e = &set[way];
        if (e->seq && e->rip == row->rip && e->rsp == row->rsp && e->space == space) {
            return e;
        }
    }
    return NULL;
}

static void ledger_add(const ctx_row *row, const ctx_simd *simd)
{
    uint64_t space = ledger_space(row);

    pthread_mutex_lock(&ledger_lock);
    ledger_entry *e = ledger_find(row, space);
    if (!e) {
        ledger_entry *set = ledger_set(row->rip, row->rsp, space);
        e = set;
        for (unsigned way = 1; way < LEDGER_WAYS; way++) {
            if (set[way].seq < e->seq) {
                e = &set[way];
            }
        }
    }
    e->seq = row->seq;
    e->rip = row->rip, e->rsp = row->rsp, e->space = space;
    memcpy(e->gpr, (const uint8_t *)row + offsetof(ctx_row, rax), sizeof(e->gpr));
    e->rflags = row->rflags, e->fs_base = row->fs_base, e->gs_base = row->gs_base;
    e->cs = row->cs, e->ss = row->ss, e->ds = row->ds, e->es = row->es, e->fs = row->fs, e->gs = row->gs;
    e->how = row->how;
    e->kernel_gs = row->flags & CTX_FLAG_PARITY_KERNEL;
    if (simd) {
        e->simd = *simd;
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
    bool user = (row->cs & 3) == 3, small = row->flags & CTX_FLAG_LINEAR32;
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
            (row->mxcsr != e->mxcsr || memcmp(simd, &e->simd, sizeof(*simd)) != 0)) {
            return false;
        }
    }
    return true;
}

/* Take the entry that `row` resumes out of the ledger; sets `match` and, where nothing differs, the flag. */
static void ledger_resume(ctx_row *row, const ctx_simd *simd)
{
    uint64_t space = ledger_space(row);

    pthread_mutex_lock(&ledger_lock);
    ledger_entry *e = ledger_find(row, space);
    if (e) {
        row->match = e->seq;
        if (!(row->flags & CTX_FLAG_FLAGS_PARTIAL) && ledger_same(e, row, simd)) {
            row->flags |= CTX_FLAG_IDENTICAL;
        }
        e->seq = 0;
    }
    pthread_mutex_unlock(&ledger_lock);
}
