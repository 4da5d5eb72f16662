/* Preloaded into QEMU: the probe gets NO_MEMORY_AFTER records, and then no more. Everybody else gets what they ask for. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

extern void *__libc_calloc(size_t count, size_t size);

static int is_probe(void *caller)
{
    Dl_info info;
    return dladdr(caller, &info) && info.dli_fname && strstr(info.dli_fname, "ctxprobe");
}

void *calloc(size_t count, size_t size)
{
    static _Thread_local int asking; /* dladdr may allocate */
    static int given;
    const char *most = NULL;

    if (!asking) {
        asking = 1;
        most = is_probe(__builtin_return_address(0)) ? getenv("NO_MEMORY_AFTER") : NULL;
        asking = 0;
    }
    return most && given++ >= atoi(most) ? NULL : __libc_calloc(count, size);
}
