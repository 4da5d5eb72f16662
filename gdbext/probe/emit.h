/*
 * Making rows: what every event carries, GS parity, tracked variables, and publishing with the wait for a verdict.
 */
#pragma once

#include <sys/syscall.h>

#include "ledger.h"
#include "ring.h"
#include "stores.h"
#include "vcpu.h"
#include "window.h"

static ring shared;
static bool simd_wanted, watch_allowed;
static atomic_bool swapgs_seen;
static atomic_bool stores_seen; /* kernel code is translated with a callback at every store */
static atomic_bool frame_was_changed; /* a reason to look at stores, unasked: see frames.h */
static _Atomic uint64_t last_star;
static _Atomic uint32_t last_caller; /* CS of the last system call's user code, and SS 16 bits above */

enum { MSR_STAR = 0xc0000081, MSR_LSTAR, MSR_CSTAR, MSR_FMASK, MSR_FS_BASE = 0xc0000100, MSR_GS_BASE,
       MSR_KERNEL_GS_BASE, MSR_SYSENTER_CS = 0x174, MSR_SYSENTER_ESP, MSR_SYSENTER_EIP };

enum { STACK_WORDS = sizeof(((ctx_row *)0)->stack) / sizeof(uint64_t) };

/* The host has no memory to keep track of `what`, and what it does goes untold. That is said once, and counted as
 * one event lost: a run of which nobody knows what it did not show is no clean one. */
static void go_untold(const char *what)
{
    static atomic_flag said = ATOMIC_FLAG_INIT;

    if (!atomic_flag_test_and_set(&said)) {
        fprintf(stderr, "ctxprobe: no memory for %s: from here on not every event is seen\n", what);
        atomic_fetch_add(SHARED(shared.control[0].overwritten, uint64_t), 1);
    }
}

static inline ctx_simd *simd_of(ctx_row *row)
{
    return simd_wanted ? (ctx_simd *)(row + 1) : NULL;
}

/* The alarm stands while kernel code would reach the user's data through gs:. A kernel that never swaps has one base. */
static void update_alarm(vcpu *v)
{
    v->score->gs_alarm = v->parity_known && !v->parity_kernel && !v->gs_overridden && swapgs_seen;
}

static uint16_t parity_flags(const vcpu *v)
{
    return (v->parity_known ? CTX_FLAG_PARITY_KNOWN : 0) | (v->parity_kernel ? CTX_FLAG_PARITY_KERNEL : 0);
}

/* Kernel and user meet: whatever went before, the user's base is the active one in user mode. Counted from there. */
static void meet_user(vcpu *v)
{
    if (!v->parity_known) {
        v->parity_known = true;
        v->parity_kernel = false;
    }
    v->gs_overridden = false;
}

static ctx_row *begin(vcpu *v, uint8_t kind, uint8_t how, uint64_t pc, unsigned bits)
{
    ctx_row *row = ring_reserve(&shared, v->index);
    row->kind = kind;
    row->how = how;
    row->pc = row->rip = pc;
    row->mode = (uint8_t)bits;
    row->flags = parity_flags(v);
    row->star = last_star;
    return row;
}

static void fill_bases(vcpu *v, ctx_row *row)
{
    row->fs_base = vcpu_reg(v, REG_FS_BASE);
    row->gs_base = vcpu_reg(v, REG_GS_BASE);
    row->kernel_gs_base = vcpu_reg(v, REG_KERNEL_GS_BASE);
    row->flags |= v->reg[REG_KERNEL_GS_BASE] ? 0 : CTX_FLAG_NO_KERNEL_GS;
}

/* What the smaller events carry: stack pointer, selectors of the running code, bases. */
static void fill_small(vcpu *v, ctx_row *row)
{
    row->rsp = vcpu_reg(v, REG_RSP);
    row->cs = (uint16_t)vcpu_reg(v, REG_CS);
    row->ss = (uint16_t)vcpu_reg(v, REG_SS);
    row->cpl = row->cs & 3;
    fill_bases(v, row);
}

static void fill_simd(vcpu *v, ctx_row *row)
{
    ctx_simd *simd = simd_of(row);

    v->buffer->len = 0;
    for (unsigned i = 0; i < 8; i++) { /* ten bytes each */
        qemu_plugin_read_register(v->reg[REG_ST0 + i], v->buffer);
        memcpy(simd->x87[i], v->buffer->data + i * 10, 10);
    }
    unsigned count = v->reg[REG_XMM0 + 8] ? 16 : 8;
    v->buffer->len = 0;
    for (unsigned i = 0; i < count; i++) {
        qemu_plugin_read_register(v->reg[REG_XMM0 + i], v->buffer);
    }
    memcpy(simd->xmm, v->buffer->data, count * 16);
    simd->fctrl = vcpu_reg(v, REG_FCTRL);
    simd->fstat = vcpu_reg(v, REG_FSTAT);
    row->mxcsr = (uint32_t)vcpu_reg(v, REG_MXCSR);
    row->flags |= CTX_FLAG_SIMD | (vcpu_reg(v, REG_CR0) & CR0_TS ? CTX_FLAG_FPU_OFF : 0);
}

/* Sample the tracked variables; where one lies depends on the CPU if it is relative to the kernel's GS base. A context that
 * was interrupted before the reader named them has none. */
static void fill_tracked(vcpu *v, ctx_row *row)
{
    const ring_header *h = shared.header;
    unsigned count = h->tracked_count < RING_TRACKED_SLOTS ? h->tracked_count : RING_TRACKED_SLOTS;
    bool kernel_active = v->parity_known ? v->parity_kernel : row->gs_base >> 63;

    for (unsigned i = 0; i < count; i++) {
        uint64_t at = h->tracked_addr[i];
        unsigned size = h->tracked_size[i] <= 8 ? h->tracked_size[i] : 8;
        if (h->tracked_flags[i] & RING_TRACKED_GS) {
            at += kernel_active || !v->reg[REG_KERNEL_GS_BASE] ? row->gs_base : row->kernel_gs_base;
        }
        v->tracked_at[i] = at;
        const uint8_t *bytes = vcpu_memory(v, at, size); /* none under the user's page tables, where they are apart */
        if (bytes) {
            memcpy(&row->tracked[i], bytes, size);
        } else {
            row->tracked[i] = UINT64_MAX;
        }
    }
    for (unsigned i = count; i < RING_TRACKED_SLOTS; i++) {
        row->tracked[i] = UINT64_MAX;
    }
}

/* The live state of an entry or exit. RSP and the five frame columns are then replaced by the context's. */
static void fill_context(vcpu *v, ctx_row *row)
{
    vcpu_general(v, row);
    fill_bases(v, row);
    row->cr2 = vcpu_reg(v, REG_CR2);
    row->cr3 = vcpu_reg(v, REG_CR3);
    row->ds = (uint16_t)vcpu_reg(v, REG_DS);
    row->es = (uint16_t)vcpu_reg(v, REG_ES);
    row->fs = (uint16_t)vcpu_reg(v, REG_FS);
    row->gs = (uint16_t)vcpu_reg(v, REG_GS);
    if (simd_wanted) {
        fill_simd(v, row);
    }
    fill_tracked(v, row);
}

/* QEMU's main thread holds every vCPU's stop request once it waits for them on a condition variable, and not before:
 * a vCPU released earlier would run past the instruction on which it is to stop. Gives up after two seconds. */
static void await_pause(void)
{
    enum { FUTEX_WAIT_BITSET = 9, FUTEX_COMMAND = 127, POLLS = 20000 };
    char path[64];

    snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", (int)getpid());
    for (unsigned polls = 0; polls < POLLS && ring_reader_present(&shared); polls++) {
        FILE *f = fopen(path, "r");
        unsigned long number = 0, operation = 0;
        int got = f ? fscanf(f, "%lu %*x %lx", &number, &operation) : 0;
        if (f) {
            fclose(f);
        } else {
            nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL); /* no such file here: time must do */
            return;
        }
        if (got == 2 && number == SYS_futex && (operation & FUTEX_COMMAND) == FUTEX_WAIT_BITSET) {
            return;
        }
        ring_pause();
    }
}

static void flush_translations(void);
static atomic_bool flush_pending;

/* Stores are looked at from when there is a reason, as the reader's wish to see some: a callback at each costs time. */
static inline void look_at_wishes(void)
{
    if (watch_allowed && !atomic_load_explicit(&stores_seen, memory_order_relaxed) &&
        (ring_wants_stores(&shared) || atomic_load_explicit(&frame_was_changed, memory_order_relaxed))) {
        atomic_store(&stores_seen, true);
        flush_translations();
    }
}

static const uint8_t *read_for_reader(uint64_t address, size_t length)
{
    static _Thread_local GByteArray *bytes;

    if (!bytes) {
        bytes = g_byte_array_new();
    }
    return qemu_plugin_read_memory_vaddr(address, bytes, length) && bytes->len >= length ? bytes->data : NULL;
}

static void answer_request(unsigned cpu)
{
    window_answer(&shared, cpu, read_for_reader);
}

/* Number and publish a row; with `wait`, stand still until the reader has judged it. */
static void publish(vcpu *v, ctx_row *row, bool wait, bool caught)
{
    wait = wait && ring_reader_present(&shared);
    if (wait) {
        row->flags |= CTX_FLAG_WAITING;
        ring_announce_wait(&shared, v->index, row->seq, caught);
    }
    ring_publish(&shared, v->index);
    if (wait && ring_await_release(&shared, v->index) == RING_RELEASE_HALT) {
        await_pause();
    }
    if (window_is_asked(&shared)) {
        answer_request(v->index);
    }
    look_at_wishes(); /* last: the reader may have wished while we waited */
}

/* The number of the last event, whichever vCPU's. */
static inline uint64_t last_number(void)
{
    return atomic_load_explicit(SHARED(shared.header->seq, uint64_t), memory_order_relaxed);
}

static void emit(vcpu *v, ctx_row *row)
{
    ring_number(&shared, row);
    publish(v, row, false, false);
}
