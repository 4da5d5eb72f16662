/*
 * QEMU's interrupt log (-d int), read where QEMU writes it: before 10.2 it tells nobody else what it delivers. With
 * `tid` each vCPU's thread has a file of its own, and a record stands there before the handler's first instruction runs.
 * The file is mapped, so that a look at it costs nothing; and where it has grown long, QEMU's own descriptor is set back to
 * its beginning, so that it never grows longer.
 *
 * The text is that of target/i386/tcg/seg_helper.c and cpu-dump.c in QEMU, the same from 9.2 to 10.1: a line of vector,
 * error code and place, the registers as they were, and EFER last.
 */
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include "level.h"
#include "stream.h"

enum { LOG_BYTES = 1 << 18, LOG_LONG = LOG_BYTES / 4, LOG_END = 64 /* what is kept there: see log_keep, log_mute */,
       LOG_MARK = 16 };

typedef struct {
    unsigned vector;
    uint32_t error;
    bool soft;     /* by an instruction */
    bool external; /* by the interrupt controller */
    bool nested;   /* the delivery before it came to nothing: it raised this exception */
    const char *text, *end; /* its registers, from their first line to EFER; valid until log_rewind */
} log_record;

typedef struct {
    char *text;  /* LOG_BYTES of them, zero where nothing is written yet */
    size_t used; /* so far it was read */
    int theirs;  /* QEMU's descriptor of the file */
    enum { MUTED_NEVER, MUTED_BY_LEVEL, MUTED_BY_STREAM } way;
    FILE *stream;  /* QEMU's, of the last way */
    int left_out;  /* of the first: kinds of messages */
    bool muted, marked;
    bool failed; /* behind the last delivery, there is word that it came to nothing */
} log_reader;

/* Remove all files whose names begin with `prefix` and go on with a number: they are this QEMU's, which ends, or those of one
 * that was killed. */
static void log_remove(const char *prefix)
{
    char path[PATH_MAX + 24];
    const char *slash = strrchr(prefix, '/'), *name = slash ? slash + 1 : prefix;
    size_t length = strlen(name);

    snprintf(path, sizeof(path), "%.*s", (int)(name - prefix), prefix);
    DIR *directory = opendir(*path ? path : ".");
    for (const struct dirent *entry; directory && (entry = readdir(directory));) {
        const char *number = entry->d_name + length;
        if (strncmp(entry->d_name, name, length) == 0 && *number && number[strspn(number, "0123456789")] == 0) {
            unlinkat(dirfd(directory), entry->d_name, 0);
        }
    }
    if (directory) {
        closedir(directory);
    }
}

/* Which descriptor beside `ours` is one of the same file; -1: none. */
static int log_other(int ours)
{
    struct stat own, other;
    int found = -1;
    DIR *all = opendir("/proc/self/fd");

    for (const struct dirent *entry; all && found < 0 && (entry = readdir(all));) {
        int fd = atoi(entry->d_name);
        bool same = *entry->d_name != '.' && fd != ours && fstat(ours, &own) == 0 && fstat(fd, &other) == 0 &&
                    own.st_dev == other.st_dev && own.st_ino == other.st_ino;
        found = same ? fd : -1;
    }
    if (all) {
        closedir(all);
    }
    return found;
}

/* Is anything new there? */
static inline bool log_look(const log_reader *l)
{
    return ((volatile char *)l->text)[l->used];
}

/* Leave out what is there. */
static inline void log_skip(log_reader *l)
{
    l->used += strlen(l->text + l->used);
}

/* Have QEMU write nothing until log_unmute. Whether the vCPU dies meanwhile of a triple fault, nobody will know: that it may
 * have done so stands at the end until log_unmark. */
static inline void log_mute(log_reader *l)
{
    memcpy(l->text + LOG_BYTES - LOG_MARK, "\nTriple fault?\n", LOG_MARK);
    if (l->way == MUTED_BY_LEVEL) {
        l->left_out = level_leave_out();
    } else {
        stream_refuse(l->stream, true);
    }
    l->muted = l->marked = true;
}

static inline void log_unmute(log_reader *l)
{
    if (l->muted) {
        if (l->way == MUTED_BY_LEVEL) {
            level_take_in(l->left_out);
        } else {
            stream_refuse(l->stream, false);
        }
        l->muted = false;
    }
}

static inline void log_unmark(log_reader *l)
{
    if (l->marked) {
        memset(l->text + LOG_BYTES - LOG_MARK, 0, LOG_MARK);
        l->marked = false;
    }
}

/* Can it be muted the way that is set? `say` makes QEMU write. */
static bool log_mutes(log_reader *l, void (*say)(const char *))
{
    log_skip(l);
    log_mute(l);
    say("\n");
    bool refused = !log_look(l);
    log_unmute(l);
    log_unmark(l);
    say("\n");
    bool heard = log_look(l);
    log_skip(l);
    return refused && heard;
}

/* Choose the way to mute it, the one that costs least first. */
static void log_try_muting(log_reader *l, void (*say)(const char *))
{
    l->way = MUTED_BY_LEVEL;
    if (level_known() && log_mutes(l, say)) {
        return;
    }
    l->way = MUTED_BY_STREAM;
    l->stream = stream_of(l->theirs);
    if (!l->stream || !log_mutes(l, say)) {
        l->way = MUTED_NEVER;
    }
}

/* This thread's log among those whose names begin with `prefix`; NULL: there is none. `say` makes QEMU write to it. */
static log_reader *log_open(const char *prefix, void (*say)(const char *))
{
    char path[PATH_MAX + 24];
    log_reader *l = calloc(1, sizeof(*l));

    snprintf(path, sizeof(path), "%s%ld", prefix, syscall(SYS_gettid));
    say("\n");
    int ours = open(path, O_RDWR | O_CLOEXEC);
    /* Blocks must exist before they are mapped: a full file system is an error here and SIGBUS later. */
    if (l && ours >= 0 && (l->theirs = log_other(ours)) >= 0 && posix_fallocate(ours, 0, LOG_BYTES) == 0) {
        l->text = mmap(NULL, LOG_BYTES + LOG_END, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (l->text != MAP_FAILED) { /* zeros stay behind it */
            l->text = mmap(l->text, LOG_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, ours, 0);
        }
    }
    if (ours >= 0) {
        close(ours);
    }
    if (!l || !l->text || l->text == MAP_FAILED) {
        free(l);
        return NULL;
    }
    log_skip(l);
    return l;
}

/* All was read: begin anew, if it has grown long. False: there was more than there is room for. */
static inline bool log_rewind(log_reader *l)
{
    if (l->used <= LOG_LONG) {
        return true;
    }
    bool whole = lseek(l->theirs, 0, SEEK_CUR) <= LOG_BYTES - LOG_END;
    lseek(l->theirs, 0, SEEK_SET);
    memset(l->text, 0, whole ? l->used : LOG_BYTES - LOG_END);
    l->used = 0;
    return whole;
}

/* What somebody who reads the file after us wants to know is put at its end, where nothing else comes. */
static void log_keep(log_reader *l, const char *line)
{
    snprintf(l->text + LOG_BYTES - LOG_END, LOG_END - LOG_MARK, "\n%.*s\n", (int)strcspn(line, "\n"), line);
}

/* `line` begins a record? Then its numbers go to `r`. */
static bool log_is_delivery(const char *line, log_record *r)
{
    char *at;

    strtoul(line, &at, 10);
    if (at == line || strncmp(at, ": v=", 4) != 0) {
        return false;
    }
    r->vector = (unsigned)strtoul(at + 4, &at, 16);
    r->error = strncmp(at, " e=", 3) == 0 ? (uint32_t)strtoul(at + 3, &at, 16) : 0;
    r->soft = strncmp(at, " i=1", 4) == 0;
    return true;
}

static bool log_begins(const char *line, const char *with)
{
    return strncmp(line, with, strlen(with)) == 0;
}

/* The next delivery, in order; false: that was all. */
static bool log_next(log_reader *l, log_record *r)
{
    static const char nested[] = "check_exception old: 0x";

    l->failed = r->external = false;
    for (const char *line = l->text + l->used, *end; (end = strchr(line, '\n')); line = end + 1) {
        l->used = (size_t)(end + 1 - l->text);
        if (log_is_delivery(line, r)) {
            r->text = end + 1;
            r->end = strstr(end, "\nEFER=");
            const char *stop = r->end ? strchr(r->end + 1, '\n') : NULL;
            if (!stop) {
                break;
            }
            r->nested = l->failed;
            l->failed = false;
            l->used = (size_t)(stop + 1 - l->text);
            return true;
        }
        if (log_begins(line, "Servicing hardware INT=")) {
            r->external = true;
        } else if (log_begins(line, nested)) {
            l->failed |= !log_begins(line + sizeof(nested) - 1, "ffffffff");
        } else if (log_begins(line, "Triple fault")) {
            log_keep(l, line);
        }
    }
    log_skip(l); /* QEMU writes whole records: what is cut off had no room */
    return false;
}

/* What stands behind `name` among the record's registers; NULL: it is not there. */
static const char *log_find(const log_record *r, const char *name)
{
    const char *found = strstr(r->text, name);
    return found && found < r->end ? found + strlen(name) : NULL;
}

/* A number of the record, in hexadecimal, behind `name`; false: not there. */
static bool log_number(const log_record *r, const char *name, uint64_t *to)
{
    const char *found = log_find(r, name);

    if (found) {
        *to = strtoull(found, NULL, 16);
    }
    return found;
}

/* Selector and base of a segment register or a table, named as in `ES =`. */
static uint16_t log_segment(const log_record *r, const char *name, uint64_t *base)
{
    const char *found = log_find(r, name);
    char *behind = NULL;
    unsigned long selector = found ? strtoul(found, &behind, 16) : 0;

    *base = found ? strtoull(behind, NULL, 16) : 0;
    return (uint16_t)selector;
}

/* Do both show the same general registers, RIP and RFLAGS? */
static bool log_same_place(const log_record *a, const log_record *b)
{
    const char *ends[] = {strstr(a->text, "\nES ="), strstr(b->text, "\nES =")};
    ptrdiff_t length = ends[0] ? ends[0] - a->text : 0;
    return length && ends[1] && ends[1] - b->text == length && memcmp(a->text, b->text, (size_t)length) == 0;
}
