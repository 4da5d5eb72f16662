/*
 * ctxprobe: the probe of ctxwatch, a TCG plugin for QEMU's x86 system emulators.
 *
 * It reports every entry into and exit from the guest's handlers with the context that was interrupted or will be
 * resumed, every swapgs and base write, and what else moves contexts, to a ring in shared memory (see ring.h). It
 * decides nothing but whether a resumed context is bit for bit the interrupted one (ledger.h).
 *
 *     qemu-system-x86_64 -plugin OBJECT,ring=FILE[,simd=on][,watch=on][,stores=on][,halt=on][,self=on][,rows=N]
 *
 * simd    capture x87, XMM and MXCSR at entries and exits
 * watch   see stores into watched ranges and tracked variables, once there are any (then every store costs time)
 * stores  look at every store of kernel code from the beginning: see stores.h and frames.h
 * halt    begin with vCPUs waiting at exits that are not identical
 * self    also report irets that merely serialise (resume the next instruction), which are counted otherwise
 * rows    rows in each vCPU's ring
 * check   say that this QEMU takes the object, and refuse to start
 *
 * A QEMU before 10.2 is to be given -d plugin,tid -D FILE.log%d, too: see heard.h.
 *
 * Copyright (C) 2026 the ctxwatch authors. SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE

#include "qemu_plugin.h"

#include "vcpu.h"

static vcpu **vcpus;
static unsigned vcpu_most;

static bool hear(vcpu *v, uint64_t pc, log_record *last);

/* The vCPU at which something happens. What happened to it before comes first. */
static inline vcpu *vcpu_of(unsigned index)
{
    vcpu *v = vcpus[index];
    log_record record;

    if (v->log) {
        log_unmark(v->log); /* it lives */
        hear(v, 0, &record);
    }
    return v;
}

#include "translate.h"
#include "outside.h"

EXPORT int qemu_plugin_version = API;

static char log_prefix[PATH_MAX]; /* of the names of QEMU's logs, before the thread's number */
static qemu_plugin_id_t plugin_id;

/* Find the log of this thread's interrupts. Of several vCPUs in one thread it does not say which is meant. */
static void listen(vcpu *v)
{
    static _Thread_local const vcpu *first;

    if (told_of_entries) {
        return;
    }
    if (!first) {
        own_log = v->log = log_open(log_prefix, qemu_plugin_outs);
        first = v;
        if (v->log && vcpu_most == 1) {
            log_try_muting(v->log, qemu_plugin_outs);
        }
    }
    if (!v->log) {
        atomic_store(&no_log, true);
    }
}

static CB_VCPU(on_vcpu_init, index)
{
    CB_UNUSED();
    vcpu *v = index < vcpu_most ? vcpus[index] : NULL;
    if (v && !v->buffer) {
        vcpu_find_registers(v, v->word);
        listen(v);
    }
    /* A new vCPU makes QEMU move the scoreboard; nobody runs meanwhile. */
    for (unsigned i = 0; i < vcpu_most; i++) {
        if (vcpus[i]->buffer) {
            vcpus[i]->score = qemu_plugin_scoreboard_find(scores, i);
        }
    }
}

static CB_ATEXIT(on_exit_of_qemu)
{
    CB_UNUSED();
    (void)userdata_;
    log_remove(log_prefix);
    atomic_store_explicit(SHARED(shared.header->state, uint32_t), RING_STATE_ENDED, memory_order_release);
}

static void register_callbacks(void)
{
    qemu_plugin_register_atexit_cb(plugin_id, on_exit_of_qemu, NULL);
    qemu_plugin_register_vcpu_init_cb(plugin_id, on_vcpu_init CB_NULL);
    qemu_plugin_register_vcpu_idle_cb(plugin_id, on_vcpu_idle CB_NULL);
    qemu_plugin_register_vcpu_resume_cb(plugin_id, on_vcpu_resume CB_NULL);
    qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, on_translation CB_NULL);
    if (told_of_entries) {
        qemu_plugin_register_vcpu_discon_cb(plugin_id, QEMU_PLUGIN_DISCON_INTERRUPT, on_discontinuity CB_NULL);
    }
}

/* Records for `count` vCPUs with general registers of `word` bytes. False: there is no memory for them. */
static bool make_vcpus(unsigned count, unsigned word)
{
    vcpus = calloc(count, sizeof(*vcpus));
    for (unsigned i = 0; i < count; i++) {
        vcpu *v = vcpus ? calloc(1, sizeof(*v)) : NULL;
        if (!v) {
            return false;
        }
        v->index = i;
        v->word = word;
        vcpus[i] = v;
    }
    vcpu_most = count;
    return true;
}

/* All translations are gone, and with them our callbacks: begin anew. */
static CB_PLAIN(after_reset)
{
    CB_UNUSED();
    pthread_mutex_lock(&idt_lock);
    forget_translated();
    pthread_mutex_unlock(&idt_lock);
    atomic_store(&flush_pending, false);
    register_callbacks();
}

/* Have QEMU throw all translated blocks away. It does so before it runs another one on this vCPU. */
static void flush_translations(void)
{
    if (!atomic_exchange(&flush_pending, true)) {
        shared.control[0].flushes++;
#if API >= 7
        qemu_plugin_reset(plugin_id, after_reset, NULL);
#else
        qemu_plugin_reset(plugin_id, after_reset);
#endif
    }
}

typedef struct {
    const char *ring;
    bool simd, watch, stores, halt, self, check;
    unsigned long rows;
} options;

static bool parse_switch(const char *value, bool *to)
{
    *to = strcmp(value, "on") == 0;
    return *to || strcmp(value, "off") == 0;
}

static bool parse_option(options *o, char *word)
{
    char *value = strchr(word, '=');
    size_t length = value ? (size_t)(value - word) : 0;
    char *end = NULL;

    if (!value) {
        return false;
    }
    value++;
    if (length == 4 && memcmp(word, "ring", 4) == 0) {
        o->ring = value;
        return *value != 0;
    }
    if (length == 4 && memcmp(word, "rows", 4) == 0) {
        o->rows = strtoul(value, &end, 10);
        return end != value && *end == 0 && o->rows >= 16 && o->rows <= 1 << 24 && (o->rows & (o->rows - 1)) == 0;
    }
    return (length == 4 && memcmp(word, "simd", 4) == 0 && parse_switch(value, &o->simd)) ||
           (length == 5 && memcmp(word, "watch", 5) == 0 && parse_switch(value, &o->watch)) ||
           (length == 6 && memcmp(word, "stores", 6) == 0 && parse_switch(value, &o->stores)) ||
           (length == 4 && memcmp(word, "halt", 4) == 0 && parse_switch(value, &o->halt)) ||
           (length == 4 && memcmp(word, "self", 4) == 0 && parse_switch(value, &o->self)) ||
           (length == 5 && memcmp(word, "check", 5) == 0 && parse_switch(value, &o->check));
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    options o = {.rows = RING_DEFAULT_ROWS};
    bool x86_64 = strcmp(info->target_name, "x86_64") == 0;

    for (int i = 0; i < argc; i++) {
        if (!parse_option(&o, argv[i])) {
            fprintf(stderr, "ctxprobe: bad option '%s'; known: ring=FILE, simd=, watch=, stores=, halt=, self=, check=on|off, "
                            "rows=N (a power of two)\n", argv[i]);
            return -1;
        }
    }
    if (o.check) {
        fprintf(stderr, "ctxprobe: fits API %d%s\n", API, qemu_plugin_register_vcpu_discon_cb ? ", told of entries" : "");
        return -1;
    }
    if (!o.ring) {
        fprintf(stderr, "ctxprobe: the option ring=FILE is missing\n");
        return -1;
    }
    if (!info->system_emulation || (!x86_64 && strcmp(info->target_name, "i386") != 0)) {
        fprintf(stderr, "ctxprobe: %s is not an x86 system\n", info->target_name);
        return -1;
    }
    unsigned cpus = (unsigned)info->system.max_vcpus;
    uint32_t flags = (o.simd ? RING_OPTION_SIMD : 0) | (o.watch ? RING_OPTION_WATCH : 0) | (o.self ? RING_OPTION_SELF : 0);
    if (!ring_open(&shared, o.ring, cpus, (unsigned)o.rows, flags, API)) {
        return -1;
    }
    snprintf(log_prefix, sizeof(log_prefix), "%s.log", o.ring);
    log_remove(log_prefix);
    last_stores = o.stores ? calloc(STORE_PLACES, sizeof(*last_stores)) : NULL;
    if (!make_vcpus(cpus, x86_64 ? 8 : 4) || (o.stores && !last_stores)) {
        ring_refuse(&shared, "no memory for %u vCPUs", cpus);
        return -1;
    }
    shared.header->halt |= o.halt;
    shared.meanwhile = answer_request;
    simd_wanted = o.simd;
    watch_allowed = o.watch;
    stores_seen = o.stores || (o.watch && ring_wants_stores(&shared));
    frame_was_changed = o.stores;
    self_wanted = o.self;
    ledger_init();
    plugin_id = id;
    told_of_entries = qemu_plugin_register_vcpu_discon_cb != NULL;
    scores = qemu_plugin_scoreboard_new(sizeof(score));
    register_callbacks();
    return 0;
}
