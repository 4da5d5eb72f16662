/*
 * Stores into the loaded interrupt tables. A gate that is written in place tells nobody, and QEMU before 10.2 tells nobody of
 * a delivery either: what a gate leads to must be known before it is used. New code is a reason to read the tables again; a
 * gate that is written by code which ran before, to lead to code which ran before, shows in its store alone.
 *
 * To look at every store of kernel code for good would cost a seventh of a Linux boot. So once WATCHED_BLOCKS of new code
 * were translated since a table was loaded or changed, callbacks are put only into instructions that have stored into a
 * table: kernels write gates by one function or two. Most kernels are smaller than that, and all their stores are seen.
 *
 * Nearly all stores go to pages that hold no table. Such a page is remembered by the vCPU as it maps it now, and a further
 * store into it costs a comparison. A page holds a table if it lies at the table's own address, or shows one of its gates
 * where the table has it: a table may be mapped twice, and be written where it was not loaded from. Devices' pages hold none,
 * and are not read: that would do something. The kernel's half of the address space is taken to be mapped alike under every
 * CR3.
 */
#pragma once

#include "switch.h"

static bool told_of_entries; /* by QEMU 10.2 and later */

enum { WATCHED_BLOCKS = 1 << 14, WRITER_BITS = 1 << 12 };

static _Atomic uint64_t table_writers[WRITER_BITS / 64]; /* instructions that have stored into a table, by hash */

static bool is_table_writer(uint64_t pc)
{
    uint64_t bit = idt_hash(pc) % WRITER_BITS;
    return table_writers[bit / 64] >> bit % 64 & 1;
}

static void note_table_writer(uint64_t pc)
{
    uint64_t bit = idt_hash(pc) % WRITER_BITS;
    atomic_fetch_or(&table_writers[bit / 64], 1ull << bit % 64);
}

/* No table has changed for long. */
static bool is_quiet(void)
{
    return idt_told.new_blocks >= WATCHED_BLOCKS;
}

/* Is a store by the instruction at `pc` to be looked at? */
static bool watches_store(uint64_t pc)
{
    return !told_of_entries && (!is_quiet() || last_stores || is_table_writer(pc));
}

/* Tables change now: look at the stores of what is translated, for a while. */
static void watch_stores(void)
{
    idt_told.new_blocks = 0;
}

/* A vCPU has loaded `t`: who has filled it? */
static void find_table_writers(idt_table *t)
{
    if (!t || t->writers_sought) {
        return;
    }
    t->writers_sought = true;
    for (uint64_t word = t->base / 8; word <= (t->base + idt_length(t) - 1) / 8; word++) {
        for (unsigned i = 0; i < vcpu_most; i++) {
            const noted_store *noted = &vcpus[i]->noted[idt_hash(word) % NOTED_STORES];
            if (noted->word == word) {
                note_table_writer(noted->pc);
            }
        }
    }
    watch_stores();
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

static bool read_tables(vcpu *any, unsigned bits);

/* The instruction at `pc` stored into a page that may hold a table. */
static void look_at_store(vcpu *v, uint64_t address, bool device, uint64_t pc)
{
    uint64_t changes = idt_told.changes;

    if (v->tableless_as_of != changes) {
        memset(v->tableless, 0, sizeof(v->tableless));
        v->tableless_as_of = changes;
    }
    page_holds holds = device ? NO_TABLE : table_at(v, address);
    if (holds == GATES) {
        if (!is_table_writer(pc)) {
            note_table_writer(pc);
            watch_stores();
        }
        read_tables(v, vcpu_bits(v));
    } else if (holds == NO_TABLE) {
        *page_slot(v, address) = address / PAGE_SIZE + 1;
    }
}

static void on_kernel_store(unsigned index, qemu_plugin_meminfo_t info, uint64_t address, void *userdata)
{
    vcpu *v = vcpus[index];
    uint64_t pc = (uint64_t)userdata;

    if (!is_quiet()) { /* note who stores what */
        v->noted[idt_hash(address / 8) % NOTED_STORES] = (noted_store){address / 8, pc};
    }
    if (*page_slot(v, address) != address / PAGE_SIZE + 1 || v->tableless_as_of != idt_told.changes) {
        const struct qemu_plugin_hwaddr *place = qemu_plugin_get_hwaddr(info, address);
        look_at_store(v, address, !place || qemu_plugin_hwaddr_is_io(place), pc);
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

/* Read the tables again: somebody may have changed them unseen. */
static void look_at_tables(vcpu *any, unsigned bits)
{
    if (read_tables(any, bits)) {
        watch_stores();
    }
}
