/*
 * The C library's stream with which QEMU writes its log, and a way to have it take nothing for a while: what is printed to
 * a stream that is not open for writing is refused before it is formatted. Nothing in C makes such a stream of another; who
 * uses this is to try it first. Only glibc is known to do so.
 */
#pragma once

#include <stdbool.h>
#include <stdio.h>

#ifdef __GLIBC__

enum { STREAM_NO_WRITES = 8 };

/* All streams of the process, in glibc since 2.2.5 */
FILE *_IO_iter_begin(void) __attribute__((weak));
FILE *_IO_iter_next(FILE *at) __attribute__((weak));
FILE *_IO_iter_file(FILE *at) __attribute__((weak));
void _IO_list_lock(void) __attribute__((weak));
void _IO_list_unlock(void) __attribute__((weak));

/* The stream whose descriptor is `fd`; NULL: none is found. */
static FILE *stream_of(int fd)
{
    FILE *found = NULL;

    if (!_IO_iter_begin || !_IO_iter_next || !_IO_iter_file || !_IO_list_lock || !_IO_list_unlock) {
        return NULL;
    }
    _IO_list_lock();
    for (FILE *at = _IO_iter_begin(); at && !found; at = _IO_iter_next(at)) {
        found = fileno(_IO_iter_file(at)) == fd ? _IO_iter_file(at) : NULL;
    }
    _IO_list_unlock();
    return found;
}

static inline void stream_refuse(FILE *stream, bool refuse)
{
    stream->_flags = refuse ? stream->_flags | STREAM_NO_WRITES : stream->_flags & ~STREAM_NO_WRITES;
}

#else

static FILE *stream_of(int fd)
{
    (void)fd;
    return NULL;
}

static inline void stream_refuse(FILE *stream, bool refuse)
{
    (void)stream;
    (void)refuse;
}

#endif
