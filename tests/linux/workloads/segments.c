/* Selectors of a local descriptor table in DS, ES, FS/GS and SS, a 16-bit stack segment among them where the kernel has
 * them (espfix: an iret to one restores only half of ESP by itself). */
#include "check.h"

#include <asm/ldt.h>

enum { DATA32, DATA16, ENTRIES };

static unsigned selector(int entry)
{
    return entry * 8 + 7; /* LDT, RPL 3 */
}

/* A flat data segment; false where the kernel refuses it. */
static int set_entry(int number, int wide)
{
    struct user_desc entry = {.entry_number = number, .limit = 0xfffff, .limit_in_pages = 1, .useable = 1};

    entry.seg_32bit = wide;
    return syscall(SYS_modify_ldt, 1, &entry, sizeof entry) == 0;
}

#define SPIN 200000l

static void data_selectors(void)
{
    unsigned wanted = selector(DATA32), ds, es, spare, old;
    long count = SPIN;

#ifdef __x86_64__
#define SPARE "gs" /* the C library's FS and GS are left alone */
#else
#define SPARE "fs"
#endif
    __asm__ volatile("mov %%ds, %[old]\n\t"
                     "mov %w[wanted], %%ds; mov %w[wanted], %%es; mov %w[wanted], %%" SPARE "\n"
                     "1: loop 1b\n\t"
                     "mov %%ds, %[ds]; mov %%es, %[es]; mov %%" SPARE ", %[spare]\n\t"
                     "mov %w[old], %%ds; mov %w[old], %%es"
                     : [ds] "=&r"(ds), [es] "=&r"(es), [spare] "=&r"(spare), [old] "=&r"(old), "+c"(count)
                     : [wanted] "r"(wanted));
    __asm__ volatile("mov %w0, %%" SPARE ::"r"(0));
    check((ds & 0xffff) == wanted, "ds is %x, not %x", ds, wanted);
    check((es & 0xffff) == wanted, "es is %x, not %x", es, wanted);
    check((spare & 0xffff) == wanted, SPARE " is %x, not %x", spare, wanted);
}

#ifdef __x86_64__
#define SP "rsp"
#else
#define SP "esp"
#endif

/* No call and no push in between: a 16-bit stack segment would use SP alone. */
static void stack_selector(int entry)
{
    unsigned wanted = selector(entry), ss, old;
    unsigned long before, after;
    long count = SPIN;

    __asm__ volatile("mov %%ss, %[old]; mov %%" SP ", %[before]\n\t"
                     "mov %w[wanted], %%ss\n"
                     "1: loop 1b\n\t"
                     "mov %%ss, %[ss]; mov %%" SP ", %[after]\n\t"
                     "mov %w[old], %%ss; mov %[before], %%" SP
                     : [ss] "=&r"(ss), [before] "=&r"(before), [after] "=&r"(after), [old] "=&r"(old), "+c"(count)
                     : [wanted] "r"(wanted));
    check((ss & 0xffff) == wanted, "ss is %x, not %x", ss, wanted);
    check(before == after, "the stack pointer is %lx, not %lx", after, before);
}

static void worker(int index)
{
    (void)index;
    check(set_entry(DATA32, 1), "modify_ldt: %s", strerror(errno));
    int narrow = set_entry(DATA16, 0);
    for (int i = 0; i < 40 * rounds; i++) {
        data_selectors();
        stack_selector(DATA32);
        if (narrow)
            stack_selector(DATA16);
    }
}

void workload_segments(void)
{
    pid_t children[2];

    for (int i = 0; i < 2; i++)
        children[i] = start(worker, i);
    for (int i = 0; i < 2; i++)
        reap(children[i]);
}
