/*
 * Stores into the loaded interrupt tables. A gate that is written in place tells nobody, and QEMU before 10.2 tells nobody of
 * a delivery either: what a gate leads to must be known before it is used. New code is a reason to read the tables again; a
 * gate that is written by code which ran before, to lead to code which ran before, shows in its store alone. So all stores
 * of kernel code are looked at, but for those on the stack.
 *
 * That costs more than QEMU's log of its interrupts, which shows what was delivered (heard.h): after WATCHED_BLOCKS blocks of
 * code in protected mode that is asked for, and nothing is added once it is there. It has no FPU registers.
 *
 * Nearly all stores go to pages that hold no table. Such a page is remembered by the vCPU as it maps it now, and a further
 * store into it costs a comparison. A page holds a table if it lies at the table's own address, or shows one of its gates
 * where the table has it: a table may be mapped twice, and be written where it was not loaded from. Devices' pages hold none,
 * and are not read: that would do something. The kernel's half of the address space is taken to be mapped alike under every
 * CR3.
 */
#pragma once

#include "switch.h"

enum { WATCHED_BLOCKS = 1 << 10 };

static bool told_of_entries; /* by QEMU 10.2 and later */
static atomic_bool no_log;   /* for one vCPU at least */

static _Atomic uint32_t *log_state(void)
{
    return SHARED(shared.header->log, uint32_t);
}

/* Are stores to be looked at? */
static bool watches_gates(void)
{
    return !told_of_entries && (simd_wanted || atomic_load_explicit(log_state(), memory_order_acquire) != RING_LOG_ON);
}

/* There is another block of code: is it time for the log? */
static void want_log(void)
{
    uint32_t off = RING_LOG_OFF;

    if (idt_told.new_blocks >= WATCHED_BLOCKS && watches_gates() && !simd_wanted && !no_log) {
        atomic_compare_exchange_strong(log_state(), &off, RING_LOG_WANTED);
    }
}

/* Where a page is remembered: the kernel's half of the address space apart from the other. */
static uint64_t *page_slot(vcpu *v, uint64_t address)
{
    bool kernel = address >> (v->word * 8 - 1) & 1;
    return &v->tableless[kernel][address / PAGE_SIZE % REMEMBERED_PAGES];
}

/* Does the page at `page` show the gates of `t` that lie in its page number `n`? One of them may just have been given another
 * handler: what else a gate says stays, and in most tables there are others. */
static bool shows_gates(vcpu *v, const idt_table *t, unsigned n, uint64_t page)
{
    enum { SELECTOR = 2, SELECTOR_TO_TYPE = 4 };

    for (unsigned i = 0; i < 2 && t->mark[n][i] != NO_MARK; i++) {
        unsigned at = t->mark[n][i] + SELECTOR;
        const uint8_t *bytes = vcpu_memory(v, page | ((t->base + at) & PAGE_OFFSET), SELECTOR_TO_TYPE);
        if (bytes && memcmp(bytes, t->bytes + at, SELECTOR_TO_TYPE) == 0) {
            return true;
        }
    }
    return false;
}

typedef enum { NO_TABLE, BESIDE_GATES, GATES } page_holds;

/* What lies where a store went: a wide one may begin in front of it. */
static page_holds table_at(vcpu *v, uint64_t address)
{
    enum { WIDEST = 64 };
    uint64_t page = address & ~(uint64_t)PAGE_OFFSET;
    page_holds found = NO_TABLE;

    pthread_mutex_lock(&idt_lock);
    for (unsigned i = 0; i < idt_count; i++) {
        const idt_table *t = idt_tables[i];
        uint64_t begin = t->base & PAGE_OFFSET, end = begin + idt_length(t);
        for (unsigned n = 0; t->loaded && n * PAGE_SIZE < end; n++) {
            uint64_t at = n * PAGE_SIZE + (address & PAGE_OFFSET);
            if (page == t->base - begin + n * PAGE_SIZE || shows_gates(v, t, n, page)) {
                bool within = at + WIDEST > begin && at < end;
                found = within || found == GATES ? GATES : BESIDE_GATES;
            }
        }
    }
    pthread_mutex_unlock(&idt_lock);
    return found;
}

static void read_tables(vcpu *any, unsigned bits);

/* Something was stored into a page that may hold a table. */
static void look_at_store(vcpu *v, uint64_t address, bool device)
{
    uint64_t changes = idt_told.changes;

    if (v->tableless_as_of != changes) {
        memset(v->tableless, 0, sizeof(v->tableless));
        v->tableless_as_of = changes;
    }
    page_holds holds = device ? NO_TABLE : table_at(v, address);
    if (holds == GATES) {
        read_tables(v, vcpu_bits(v));
    } else if (holds == NO_TABLE) {
        *page_slot(v, address) = address / PAGE_SIZE + 1;
    }
}

static void on_kernel_store(unsigned index, qemu_plugin_meminfo_t info, uint64_t address, void *userdata)
{
    vcpu *v = vcpus[index];

    (void)userdata;
    if (*page_slot(v, address) != address / PAGE_SIZE + 1 || v->tableless_as_of != idt_told.changes) {
        const struct qemu_plugin_hwaddr *place = qemu_plugin_get_hwaddr(info, address);
        look_at_store(v, address, !place || qemu_plugin_hwaddr_is_io(place));
    }
}

static void on_invlpg(unsigned index, void *userdata)
{
    vcpu *v = vcpu_of(index);
    *page_slot(v, operand_address(v, userdata)) = 0;
}

static void on_paging(unsigned index, void *userdata)
{
    vcpu *v = vcpu_of(index);

    (void)userdata;
    memset(v->tableless, 0, sizeof(v->tableless));
}
