/*
 * The producer's side of the ring file: opening it, taking a row, publishing it, waiting for the reader.
 *
 * Layout and meaning: gdbext/sources/ring.py, from which layout.h is generated at build time. Each ring has one
 * producer at a time (its vCPU); `seq` is shared by all. The reader is alive exactly while its lock is held.
 */
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "layout.h"

enum { RING_POLL_NS = 50000, RING_POLLS_PER_CHECK = 200 };

typedef struct {
    int fd;
    size_t row_size;
    uint64_t mask;
    ring_header *header;
    ring_watch *watch;
    ring_memory *memory;
    ring_control *control;
    uint8_t *rows;
    void (*meanwhile)(unsigned cpu); /* what a vCPU is there for while it stands still; NULL: nothing */
} ring;

#define SHARED(field, type) ((_Atomic type *)&(field))

static inline uint64_t ring_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void ring_pause(void)
{
    nanosleep(&(struct timespec){.tv_nsec = RING_POLL_NS}, NULL);
}

static void ring_stand_still(const ring *r, unsigned cpu)
{
    if (r->meanwhile) {
        r->meanwhile(cpu);
    }
    ring_pause();
}

static struct flock ring_lock_of(short type, off_t byte)
{
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
}

/* Is there a reader? Only the kernel knows: it dropped the lock if the reader died. */
static bool ring_reader_lives(const ring *r)
{
    struct flock lock = ring_lock_of(F_WRLCK, RING_READER_LOCK);
    return fcntl(r->fd, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

static inline bool ring_reader_present(const ring *r)
{
    return atomic_load_explicit(SHARED(r->header->present, uint32_t), memory_order_acquire) != 0;
}

/* The reader is gone: from now on the oldest rows are overwritten and nobody is waited for. Unless another came while we
 * looked: it may have said so before we said that there is none. */
static void ring_reader_lost(const ring *r)
{
    atomic_store(SHARED(r->header->present, uint32_t), 0);
    if (ring_reader_lives(r)) {
        atomic_store(SHARED(r->header->present, uint32_t), 1);
    }
}

static inline ring_control *ring_cpu(const ring *r, unsigned cpu)
{
    return &r->control[cpu];
}

/* Wait until the ring has room for one more row, or until there is no reader to make room. */
static void ring_wait_for_room(const ring *r, unsigned cpu, uint64_t head)
{
    ring_control *c = ring_cpu(r, cpu);

    for (unsigned polls = 0; ring_reader_present(r); polls++) {
        if (head - atomic_load_explicit(SHARED(c->tail, uint64_t), memory_order_acquire) <= r->mask) {
            return;
        }
        if (polls % RING_POLLS_PER_CHECK == RING_POLLS_PER_CHECK - 1 && !ring_reader_lives(r)) {
            ring_reader_lost(r);
        }
        ring_stand_still(r, cpu);
    }
}

/* The next row of `cpu`'s ring, zeroed, the same until ring_publish; nobody sees it before. */
static inline ctx_row *ring_reserve(const ring *r, unsigned cpu)
{
    ring_control *c = ring_cpu(r, cpu);
    uint64_t head = c->head;

    if (head - atomic_load_explicit(SHARED(c->tail, uint64_t), memory_order_acquire) > r->mask) {
        ring_wait_for_room(r, cpu, head);
    }
    ctx_row *row = (ctx_row *)(r->rows + ((uint64_t)cpu * (r->mask + 1) + (head & r->mask)) * r->row_size);
    memset(row, 0, r->row_size);
    row->cpu = (uint16_t)cpu;
    row->time = ring_clock();
    return row;
}

/* Give the row its number. As late as may be: until it is published, readers hold back everything behind it. */
static inline void ring_number(const ring *r, ctx_row *row)
{
    row->seq = atomic_fetch_add_explicit(SHARED(r->header->seq, uint64_t), 1, memory_order_relaxed) + 1;
}

static inline void ring_publish(const ring *r, unsigned cpu)
{
    ring_control *c = ring_cpu(r, cpu);
    if (c->head - atomic_load_explicit(SHARED(c->tail, uint64_t), memory_order_relaxed) > r->mask) {
        atomic_fetch_add_explicit(SHARED(c->overwritten, uint64_t), 1, memory_order_relaxed); /* nobody took what lay there */
    }
    atomic_store_explicit(SHARED(c->head, uint64_t), c->head + 1, memory_order_release);
}

/* Stand still until the reader releases this vCPU; returns what it is to do. Without a reader: go on. */
static uint32_t ring_await_release(const ring *r, unsigned cpu)
{
    ring_control *c = ring_cpu(r, cpu);
    uint32_t ticket = c->waiting & ~RING_TICKET_MASK, verb = RING_RELEASE_NOT_YET;

    for (unsigned polls = 1; ring_reader_present(r); polls++) {
        uint32_t word = atomic_load_explicit(SHARED(c->release, uint32_t), memory_order_acquire);
        if ((word & ~RING_TICKET_MASK) == ticket && (word & RING_TICKET_MASK) != RING_RELEASE_NOT_YET) {
            verb = word & RING_TICKET_MASK;
            break;
        }
        if (polls % RING_POLLS_PER_CHECK == 0 && !ring_reader_lives(r)) {
            ring_reader_lost(r);
        }
        ring_stand_still(r, cpu);
    }
    atomic_store(SHARED(c->caught, uint32_t), 0);
    atomic_store_explicit(SHARED(c->waiting, uint32_t), 0, memory_order_release);
    return verb == RING_RELEASE_NOT_YET ? RING_RELEASE_GO : verb;
}

/* Announce the wait in event `seq` before its row is published, so that a reader who sees the row may release at once.
 * A release names the event: one that comes late, when the vCPU waits in another, is none. */
static inline void ring_announce_wait(const ring *r, unsigned cpu, uint64_t seq, bool caught)
{
    ring_control *c = ring_cpu(r, cpu);
    uint32_t ticket = (uint32_t)seq << RING_TICKET_SHIFT;
    atomic_store(SHARED(c->release, uint32_t), ticket | RING_RELEASE_NOT_YET);
    atomic_store(SHARED(c->caught, uint32_t), caught);
    atomic_store_explicit(SHARED(c->waiting, uint32_t), ticket | 1, memory_order_release);
}

/* Say why the probe cannot start: to whoever started QEMU, and in the file for the reader that made it. Returns false. */
__attribute__((format(printf, 2, 3))) static bool ring_refuse(ring *r, const char *format, ...)
{
    char text[RING_ERROR_BYTES];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    fprintf(stderr, "ctxprobe: %s\n", text);
    if (r->header && (r->rows || r->header->state == RING_STATE_EMPTY)) { /* else it is another probe's */
        memcpy(r->header->error, text, sizeof(text));
        atomic_store_explicit(SHARED(r->header->state, uint32_t), RING_STATE_FAILED, memory_order_release);
    }
    return false;
}

static bool ring_map_header(ring *r, const char *path)
{
    struct stat status;
    int error;

    r->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (r->fd < 0 || fstat(r->fd, &status) != 0) {
        return ring_refuse(r, "cannot open the ring %s: %s", path, strerror(errno));
    }
    bool ours = status.st_size == 0; /* no reader made it: a flight recorder until one comes */
    if (!S_ISREG(status.st_mode) || (!ours && status.st_size < RING_CONTROL_OFFSET)) {
        return ring_refuse(r, "%s is not a ring", path);
    }
    if (ours && (error = posix_fallocate(r->fd, 0, RING_CONTROL_OFFSET)) != 0) {
        return ring_refuse(r, "no room for the ring %s: %s", path, strerror(error));
    }
    void *map = mmap(NULL, RING_CONTROL_OFFSET, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
    if (map == MAP_FAILED) {
        return ring_refuse(r, "cannot map the ring %s: %s", path, strerror(errno));
    }
    r->header = map;
    if (ours) {
        r->header->version = RING_VERSION;
        r->header->schema = CTX_SCHEMA_VERSION;
        r->header->magic = RING_MAGIC;
    }
    if (r->header->magic != RING_MAGIC) {
        munmap(map, RING_CONTROL_OFFSET);
        r->header = NULL; /* not ours to write into */
        return ring_refuse(r, "%s is not a ring", path);
    }
    if (r->header->version != RING_VERSION || r->header->schema != CTX_SCHEMA_VERSION) {
        return ring_refuse(r, "the ring %s is of version %u.%u, this probe is of %u.%u", path, r->header->version,
                           r->header->schema, RING_VERSION, CTX_SCHEMA_VERSION);
    }
    return true;
}

static size_t ring_pages(size_t size)
{
    return (size + RING_PAGE - 1) / RING_PAGE * RING_PAGE;
}

static bool ring_become_writer(ring *r, const char *path)
{
    struct flock lock = ring_lock_of(F_WRLCK, RING_WRITER_LOCK);
    const ring_header *header = r->header;

    if (fcntl(r->fd, F_OFD_SETLK, &lock) == 0) {
        return true;
    }
    r->header = NULL; /* the other probe's file: leave it alone */
    return ring_refuse(r, "the ring %s belongs to another QEMU, process %u", path, header->writer);
}

/* What an earlier guest left in the file at `path` is kept under another name, unless somebody reads it. */
static bool ring_put_aside(ring *r, const char *path)
{
    char old[PATH_MAX];

    if (ring_reader_lives(r) || snprintf(old, sizeof(old), "%s.old", path) >= (int)sizeof(old) || rename(path, old) != 0) {
        return ring_refuse(r, "the ring %s was used before, and cannot be moved out of the way", path);
    }
    munmap(r->header, RING_CONTROL_OFFSET);
    close(r->fd);
    return true;
}

/* Open the ring file at `path` and add rings of `rows` rows for `cpus` vCPUs. False: refused, and said why. */
static bool ring_open(ring *r, const char *path, unsigned cpus, unsigned rows, uint32_t options, uint32_t api)
{
    bool fresh;
    int error;

    *r = (ring){.fd = -1, .row_size = options & RING_OPTION_SIMD ? RING_SIMD_ROW_SIZE : sizeof(ctx_row)};
    do {
        if (!ring_map_header(r, path) || !ring_become_writer(r, path)) {
            return false;
        }
        fresh = r->header->state == RING_STATE_EMPTY;
        if (!fresh && !ring_put_aside(r, path)) {
            return false;
        }
    } while (!fresh);
    size_t rings = RING_CONTROL_OFFSET + ring_pages(cpus * sizeof(ring_control));
    size_t size = rings + ring_pages((size_t)cpus * rows * r->row_size);
    /* Blocks must exist before they are mapped: a full file system is an error here and SIGBUS later. */
    if ((error = posix_fallocate(r->fd, 0, (off_t)size)) != 0) {
        return ring_refuse(r, "no room for the ring %s, which takes %zu MiB: %s", path, (size >> 20) + 1,
                           strerror(error));
    }
    /* Populated: faults on the first lap would fall into the guest's time. */
    uint8_t *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, 0);
    if (map == MAP_FAILED) {
        return ring_refuse(r, "cannot map the ring %s: %s", path, strerror(errno));
    }
    munmap(r->header, RING_CONTROL_OFFSET);
    r->header = (ring_header *)map;
    r->watch = (ring_watch *)(map + RING_WATCH_OFFSET);
    r->memory = (ring_memory *)(map + RING_MEMORY_OFFSET);
    r->control = (ring_control *)(map + RING_CONTROL_OFFSET);
    r->rows = map + rings;
    r->mask = rows - 1;
    r->header->row_size = (uint32_t)r->row_size;
    r->header->rows = rows;
    r->header->cpus = cpus;
    r->header->options = options;
    r->header->api = api;
    r->header->writer = (uint32_t)getpid();
    atomic_store_explicit(SHARED(r->header->state, uint32_t), RING_STATE_ATTACHED, memory_order_release);
    return true;
}

/* Does the reader wish to see any stores? */
static inline bool ring_wants_stores(const ring *r)
{
    uint32_t active = atomic_load_explicit(SHARED(r->header->watch_active, uint32_t), memory_order_relaxed) & 1;
    return r->header->watch_count[active] != 0 || r->header->tracked_count != 0;
}

/* Does a store of `size` bytes at `address` touch a range of table number `active`? */
static inline bool ring_watches_in(const ring *r, uint32_t active, uint64_t address, unsigned size)
{
    uint32_t count = r->header->watch_count[active & 1];
    const ring_watch *w = &r->watch[active & 1];
    uint32_t bit = address / RING_WATCH_GRANULE % RING_WATCH_BITS;

    if (count - 1 >= RING_WATCH_RANGES || !(w->bits[bit / 8] >> (bit % 8) & 1)) {
        return false;
    }
    uint32_t low = 0, high = count; /* the first range that begins behind the store */
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (w->lo[middle] < address + size) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low > 0 && w->hi[low - 1] > address;
}

/* Does a store of `size` bytes at `address` touch a watched range? The reader fills the other table before it counts on;
 * then this one may be filled for the time after: an answer counts only if the table was in force all the time. */
static inline bool ring_watches(const ring *r, uint64_t address, unsigned size)
{
    _Atomic uint32_t *active = SHARED(r->header->watch_active, uint32_t);
    uint32_t now = atomic_load_explicit(active, memory_order_acquire), before;
    bool watched;

    do {
        before = now;
        watched = ring_watches_in(r, before, address, size);
        atomic_thread_fence(memory_order_acquire);
        now = atomic_load_explicit(active, memory_order_acquire);
    } while (now != before);
    return watched;
}
