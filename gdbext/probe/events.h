/*
 * Everything that is neither entry nor exit: swapgs, base and CR3 writes, descriptor tables, gs: accesses with the
 * wrong base, stores into watched memory, resets.
 */
#pragma once

#include "far.h"

static void on_swapgs(unsigned index, void *userdata)
{
    vcpu *v = vcpu_of(index);
    ctx_row *row = begin(v, CTX_KIND_SWAPGS, 0, (uint64_t)userdata, 64);

    fill_small(v, row);
    ring_cpu(&shared, index)->swapgs++;
    emit(v, row);
    swapgs_seen = true;
    v->parity_kernel = v->parity_known && !v->parity_kernel;
    v->gs_overridden = false;
    update_alarm(v);
}

/* An entry point may have been run as ordinary code before; then its blocks lack our callback. */
static void add_entry_point(vcpu *v, uint64_t address)
{
    pthread_mutex_lock(&idt_lock);
    bool stale = add_target(address, vcpu_read, v);
    pthread_mutex_unlock(&idt_lock);
    if (stale) {
        flush_translations();
    }
}

static void emit_base(vcpu *v, uint8_t how, uint64_t pc, unsigned bits, uint32_t msr, uint64_t value)
{
    ctx_row *row = begin(v, CTX_KIND_BASE, how, pc, bits);

    fill_small(v, row);
    row->addr = msr;
    row->value = value;
    /* A paranoid entry loads the kernel's base by hand instead of swapping; the exit loads the user's back. */
    if (msr == MSR_GS_BASE && !v->parity_kernel) {
        v->gs_overridden = value == row->kernel_gs_base || value >> 63;
    }
    emit(v, row);
    update_alarm(v);
}

static void on_wrmsr(unsigned index, void *userdata)
{
    const site *s = userdata;
    vcpu *v = vcpu_of(index);
    uint32_t msr = (uint32_t)vcpu_reg(v, REG_RCX);

    if ((msr < MSR_STAR || msr > MSR_FMASK) && (msr < MSR_FS_BASE || msr > MSR_KERNEL_GS_BASE) &&
        (msr < MSR_SYSENTER_CS || msr > MSR_SYSENTER_EIP)) {
        return;
    }
    uint64_t value = vcpu_reg(v, REG_RDX) << 32 | (uint32_t)vcpu_reg(v, REG_RAX);
    switch (msr) {
    case MSR_STAR: last_star = v->star = value; break;
    case MSR_LSTAR: v->lstar = value; break;
    case MSR_CSTAR: v->cstar = value; break;
    case MSR_SYSENTER_EIP: v->sysenter_eip = value; break;
    case MSR_SYSENTER_CS: v->sysenter_cs = (uint16_t)value; break;
    default: break;
    }
    if (s->bits != 16) { /* firmware in real mode has no contexts to keep */
        emit_base(v, CTX_HOW_WRMSR, s->pc, s->bits, msr, value);
    }
    if (msr == MSR_LSTAR || msr == MSR_CSTAR || msr == MSR_SYSENTER_EIP) {
        add_entry_point(v, value);
    }
}

static void on_wrbase(unsigned index, void *userdata)
{
    const site *s = userdata;
    vcpu *v = vcpu_of(index);
    uint64_t value = vcpu_reg(v, s->insn.reg);

    emit_base(v, CTX_HOW_WRBASE, s->pc, s->bits, s->insn.kind == OP_WRFSBASE ? MSR_FS_BASE : MSR_GS_BASE,
              s->insn.size == 8 ? value : (uint32_t)value);
}

static void on_cr3(unsigned index, void *userdata)
{
    const site *s = userdata;
    vcpu *v = vcpu_of(index);
    ctx_row *row = begin(v, CTX_KIND_CR3, 0, s->pc, s->bits);

    vcpu_forget_space(v);
    row->rsp = vcpu_reg(v, REG_RSP);
    row->cs = (uint16_t)vcpu_reg(v, REG_CS);
    row->cpl = row->cs & 3;
    row->cr3 = vcpu_reg(v, REG_CR3);
    row->value = vcpu_reg(v, s->insn.reg);
    row->flags |= CTX_FLAG_NO_BASES | CTX_FLAG_NO_KERNEL_GS;
    emit(v, row);
}

/* System management mode begins at this offset into its code segment, in 16-bit mode, brings tables of its own, and
 * leaves by rsm, which brings back the interrupted code's without a lidt or lgdt (Intel SDM vol. 3C, 32.4 and 32.5).
 * Other 16-bit code that begins there does no harm: what is noted is used by rsm alone, behind a true beginning. */
enum { SMI_ENTRY = 0x8000 };

static void on_smi(unsigned index, void *userdata)
{
    (void)userdata;
    vcpu *v = vcpu_of(index);

    if (vcpu_reg(v, REG_RIP) != SMI_ENTRY) {
        return;
    }
    v->outside.known = true;
    v->outside.idt = v->idt ? v->idt->base : 0;
    v->outside.idt_limit = v->idt ? v->idt->limit : 0;
    v->outside.idt_bits = v->idt ? v->idt->bits : 0;
    v->outside.gdt = v->gdt;
    v->outside.gdt_limit = v->gdt_limit;
}

static void on_table(unsigned index, void *userdata)
{
    (void)userdata;
    vcpu_of(index)->table_words = 0;
}

/* Has the instruction, whose opcode begins with 0F, an operand size prefix? */
static bool has_size_prefix(const uint8_t *bytes)
{
    while (*bytes != 0x0f && *bytes != 0x66) {
        bytes++;
    }
    return *bytes == 0x66;
}

/* Is the operand size of an lgdt or lidt 16? Protected mode has 16-bit code, too; right behind the mov to CR0 that begins
 * it, CS is real mode's, and says nothing: there all bits count, as nobody has other than 0 in those that do not. */
static bool is_short_operand(vcpu *v, const site *s)
{
    enum { BIG = 54 };
    bool prefix = has_size_prefix(s->bytes);

    if (s->bits != 32) {
        return s->bits == 16 && !prefix;
    }
    uint64_t segment = vcpu_descriptor(v, (uint16_t)vcpu_reg(v, REG_CS));
    return segment && (segment >> BIG & 1) == prefix;
}

/* lgdt and lidt read a 16-bit limit, then the base; 24 bits of it where the operand size is 16. */
static void on_table_operand(unsigned index, qemu_plugin_meminfo_t info, uint64_t address, void *userdata)
{
    const site *s = userdata;
    vcpu *v = vcpu_of(index);
    qemu_plugin_mem_value value = qemu_plugin_mem_get_value(info);

    (void)address;
    if (v->table_words++ == 0) {
        v->table_limit = value.data.u16;
        return;
    }
    uint64_t base = value.type == 3 ? value.data.u64 : value.data.u32 & (is_short_operand(v, s) ? 0xffffff : 0xffffffff);
    if (s->insn.kind == OP_LGDT) {
        v->gdt = base;
        v->gdt_limit = v->table_limit;
        v->code_segment.known = false;
        v->flat_ss = v->flat_cs = v->flat_user = 0;
        pthread_mutex_lock(&idt_lock);
        if (v->idt) {
            idt_note_segments(v->idt, v->gdt, v->gdt_limit);
        }
        pthread_mutex_unlock(&idt_lock);
        return;
    }
    pthread_mutex_lock(&idt_lock);
    load_idt(v, base, v->table_limit);
    if (v->idt) {
        idt_note_segments(v->idt, v->gdt, v->gdt_limit);
    }
    bool stale = v->idt && s->bits != 16 && idt_refresh(v->idt, s->bits, vcpu_read, v);
    pthread_mutex_unlock(&idt_lock);
    if (stale) {
        flush_translations();
    }
    if (s->bits != 16) {
        ctx_row *row = begin(v, CTX_KIND_IDT, 0, s->pc, s->bits);
        fill_small(v, row);
        row->addr = base;
        row->value = v->table_limit;
        emit(v, row);
    }
}

static void on_rsm(unsigned index, void *userdata)
{
    (void)userdata;
    vcpu *v = vcpu_of(index);

    if (!v->outside.known) {
        return;
    }
    v->outside.known = false;
    v->gdt = v->outside.gdt;
    v->gdt_limit = v->outside.gdt_limit;
    v->code_segment.known = false;
    v->flat_ss = v->flat_cs = v->flat_user = 0;
    pthread_mutex_lock(&idt_lock);
    if (v->outside.idt_limit) {
        load_idt(v, v->outside.idt, v->outside.idt_limit);
        if (v->idt && v->idt->read) {
            v->idt->bits = v->outside.idt_bits; /* it serves what it served before */
        }
    } else if (v->idt) {
        v->idt->loaded--;
        v->idt = NULL;
    }
    pthread_mutex_unlock(&idt_lock);
}

/* Runs only while the alarm stands; once an episode is enough, so it is lowered until parity is looked at again. */
static void on_gs_access(unsigned index, void *userdata)
{
    const site *s = userdata;
    vcpu *v = vcpu_of(index);
    ctx_row *row = begin(v, CTX_KIND_GS_ACCESS, 0, s->pc, s->bits);

    vcpu_general(v, row);
    fill_small(v, row);
    row->cr3 = vcpu_reg(v, REG_CR3);
    row->addr = row->gs_base + operand_address(v, s);
    row->size = s->insn.size;
    v->score->gs_alarm = 0;
    ring_number(&shared, row);
    publish(v, row, shared.header->halt, false);
}

static void emit_store(vcpu *v, uint8_t kind, uint64_t pc, uint64_t address, uint64_t value, unsigned size,
                       uint64_t frame)
{
    ctx_row *row = begin(v, kind, 0, pc, 0);

    row->rsp = vcpu_reg(v, REG_RSP);
    row->cs = (uint16_t)vcpu_reg(v, REG_CS);
    row->cpl = row->cs & 3;
    row->cr3 = vcpu_reg(v, REG_CR3);
    row->mode = v->idt && v->idt->bits ? (uint8_t)v->idt->bits : v->word == 8 ? 64 : 32;
    row->addr = address;
    row->value = value;
    row->size = (uint8_t)size;
    row->frame = frame;
    row->flags |= CTX_FLAG_NO_BASES | CTX_FLAG_NO_KERNEL_GS;
    emit(v, row);
}

/* What a store stores: its lowest eight bytes. */
static uint64_t stored(qemu_plugin_meminfo_t info)
{
    qemu_plugin_mem_value value = qemu_plugin_mem_get_value(info);
    unsigned bits = 8u << value.type;
    return bits < 64 ? value.data.u64 & ((1ull << bits) - 1) : value.data.u64;
}

static void on_store(unsigned index, qemu_plugin_meminfo_t info, uint64_t address, void *userdata)
{
    unsigned size = 1u << qemu_plugin_mem_size_shift(info);
    const ring_header *h = shared.header;
    vcpu *v = NULL;
    uint64_t frame = 0;

    if (last_stores) {
        store_note(address, stored(info), size, (uint64_t)userdata, last_number(), index);
    }
    if (atomic_load_explicit(&frame_was_changed, memory_order_relaxed) && frame_may_lie(address)) {
        frame = frame_changed_by(address, stored(info), size, vcpu_reg(vcpu_of(index), REG_RSP));
    }
    if (frame || ring_watches(&shared, address, size)) {
        v = vcpu_of(index);
        emit_store(v, CTX_KIND_STORE, (uint64_t)userdata, address, stored(info), size, frame);
    }
    for (unsigned i = 0; i < h->tracked_count && i < RING_TRACKED_SLOTS; i++) {
        v = vcpu_of(index);
        uint64_t at = v->tracked_at[i];
        if (at && address < at + h->tracked_size[i] && at < address + size) {
            emit_store(v, CTX_KIND_TRACKED, (uint64_t)userdata, address, stored(info), size, 0);
        }
    }
}

/* Nothing of what was seen before holds of the machine that goes on. */
static void forget_all(vcpu *v)
{
    ledger_forget();
    frames_forget();
    pthread_mutex_lock(&away_lock);
    memset(away, 0, sizeof(away));
    pthread_mutex_unlock(&away_lock);
    v->parity_known = v->parity_kernel = v->gs_overridden = false;
    v->soft.pending = v->call.syscall = v->call.sysenter = false;
    v->last = (last_event){0};
    v->code_segment.known = false;
    v->flat_ss = v->flat_cs = v->flat_user = 0;
    v->outside.known = false;
    v->score->leaving = v->score->switching = v->score->jump_target = 0;
    atomic_store(&v->came_to, 0);
    update_alarm(v);
}

/* Does the guest ask for a reset: by the keyboard controller's pulse of that line, the chipset's reset control, or the
 * system control port? Then it is none that something went wrong to. */
static void on_out(unsigned index, void *userdata)
{
    enum { KEYBOARD = 0x64, SYSTEM_CONTROL = 0x92, RESET_CONTROL = 0xcf9 };
    const site *s = userdata;
    vcpu *v = vcpu_of(index);
    unsigned port = s->insn.reg == NO_REG ? (unsigned)s->insn.imm : (uint16_t)vcpu_reg(v, s->insn.reg);

    if (port != KEYBOARD && port != SYSTEM_CONTROL && port != RESET_CONTROL) {
        return;
    }
    uint8_t value = (uint8_t)vcpu_reg(v, REG_RAX);
    if ((port == KEYBOARD && (value & 0xf1) == 0xf0) || (port == SYSTEM_CONTROL && (value & 1)) ||
        (port == RESET_CONTROL && (value & 4))) {
        ring_cpu(&shared, index)->resets_asked++;
    }
}

static bool reset_was_asked(void)
{
    static uint32_t known;
    uint32_t asked = 0;

    for (unsigned i = 0; i < vcpu_most; i++) {
        asked += ring_cpu(&shared, i)->resets_asked;
    }
    bool more = asked != known;
    known = asked;
    return more;
}

static void emit_at_reset(vcpu *v, uint8_t kind, uint64_t pc)
{
    ctx_row *row = begin(v, kind, 0, pc, 16);

    row->flags |= CTX_FLAG_NO_BASES | CTX_FLAG_NO_KERNEL_GS | CTX_FLAG_UNREADABLE;
    emit(v, row);
}

/* The reset vector. The first time is power-on; after that the guest died or started over. */
static void on_reset(unsigned index, void *userdata)
{
    vcpu *v = vcpu_of(index);

    if (v->resets++ == 0) {
        return;
    }
    if (!reset_was_asked()) {
        emit_at_reset(v, CTX_KIND_DIED, (uint64_t)userdata);
    }
    emit_at_reset(v, CTX_KIND_RESTORED, (uint64_t)userdata);
    pthread_mutex_lock(&idt_lock);
    if (v->idt) {
        v->idt->loaded--;
        v->idt = NULL;
    }
    pthread_mutex_unlock(&idt_lock);
    forget_all(v);
    v->gdt = 0;
    v->lstar = v->cstar = v->sysenter_eip = v->star = 0;
}
