/* What the kernel does about interrupts, exceptions and system calls, whatever the save style. */
#include "kernel.h"

#define PAGE_PRESENT 1 /* page fault error code: the page was there, the access was not allowed */

#define MAX_REPORTS 12 /* of one kind: a guest that fails all the time must not drown the console */

/*
 * Fixup table: an instruction that may fault on a user address, and where to go on when it does. A
 * target of 0 means: end the system call on the spot.
 */
struct fixup {
    word fault, target;
};
extern const struct fixup fixups_start[], fixups_end[];
extern const u8 text_start[], text_end[];

static const struct fixup *find_fixup(word rip)
{
    for (const struct fixup *f = fixups_start; f < fixups_end; f++)
        if (f->fault == rip)
            return f;
    return 0;
}

static void unexpected(word vector, word error, word *rip, word cs)
{
    struct cpu *cpu = this_cpu();
    word cr2 = read_cr2();
    if (!(cs & 3)) {
        const struct fixup *f = find_fixup(*rip);
        if (f && f->target) {
            *rip = f->target;
            return;
        }
        if (f) {
            end_system_call();
            return;
        }
        panic("vector %u error %x rip %x cs %x cr2 %x", vector, error, *rip, cs, cr2);
    }
    print("guest: killed %s, vector %u error %x rip %x cr2 %x\n", cpu->current->name, vector, error, *rip, cr2);
    cpu->current->state = THREAD_DEAD;
    cpu->resched = 1;
}

/* Every vector but system calls, NMI, #DB and #DF. Interrupts are off. May change *rip (fixup). */
void handle_trap(word vector, word error, word *rip, word cs)
{
    switch (vector) {
    case VECTOR_TIMER:
        lapic_eoi();
        tick(this_cpu());
        break;
    case VECTOR_SPURIOUS:
    case VECTOR_BREAKPOINT:
        break;
#ifdef LAZY_FPU
    case VECTOR_NO_FPU:
        take_fpu(this_cpu());
        break;
#endif
    case VECTOR_PAGE_FAULT:
        __atomic_add_fetch(&count_faults, 1, __ATOMIC_RELAXED);
        if (!(error & PAGE_PRESENT) && demand_page(current_thread()->cr3, read_cr2()))
            break;
        /* fall through */
    default:
        unexpected(vector, error, rip, cs);
    }
}

/* A self-check failed: register `what` (layout.h) came back wrong. Also called by kernel threads. */
word report_corrupt(word what, word where, word unused)
{
    (void)unused;
    if (__atomic_add_fetch(&count_corrupt, 1, __ATOMIC_RELAXED) <= MAX_REPORTS)
        print("guest: CORRUPT %s %s, %s\n", what < register_count ? register_names[what] : "?",
              where == WHERE_SYSCALL ? "after a call" : "while computing", current_thread()->name);
    return 0;
}

static word sys_yield(word a, word b, word c)
{
    (void)a, (void)b, (void)c;
    reschedule();
    return 0;
}

static word sys_sleep(word for_ticks, word b, word c)
{
    (void)b, (void)c;
    sleep_until(current_thread(), ticks + for_ticks);
    reschedule();
    return 0;
}

static word sys_getpid(word a, word b, word c)
{
    (void)a, (void)b, (void)c;
    return current_thread()->pid;
}

static word sys_impossible(word a, word b, word c)
{
    (void)a, (void)b, (void)c;
    if (__atomic_add_fetch(&count_impossible, 1, __ATOMIC_RELAXED) <= MAX_REPORTS)
        print("guest: impossible branch\n");
    return 0;
}

static word sum(const u8 *bytes, word length)
{
    word total = 0;
    while (length--)
        total += *bytes++;
    return total;
}

static word sys_copy(word pointer, word length, word c)
{
    u8 buffer[64];
    int failed;
    (void)c;
    if (length > sizeof buffer)
        return -EFAULT;
    interrupts_on();
    failed = copy_from_user(buffer, pointer, length);
    interrupts_off();
    return failed ? (word)-EFAULT : sum(buffer, length);
}

/* The part of SYS_COPY_END that a fault abandons; sys_copy_end, in assembly, remembers the way back. */
word copy_or_end(word pointer, word length)
{
    u8 buffer[64];
    if (length > sizeof buffer)
        return -EFAULT;
    copy_from_user_or_end(buffer, pointer, length);
    return sum(buffer, length);
}

static word sys_unmap(word page, word b, word c)
{
    (void)b, (void)c;
    if (page < USER_HEAP || page >= USER_HEAP + USER_HEAP_SIZE)
        return -EFAULT;
    unmap_page(current_thread()->cr3, page);
    return 0;
}

/* Only by SYSCALL. The user chooses arithmetic flags and DF, nothing else. */
static word sys_jump(word rip, word rsp, word rflags)
{
#ifndef BUG_RIP_NONCANONICAL /* BUG: not looked at */
    if (!is_user_address(rip))
        return -EFAULT;
#endif
#ifndef BUG_IOPL_LEAK /* BUG: the user gets the IOPL it asks for */
    rflags &= RFLAGS_USER;
#endif
    jump_user(current_thread(), rip, rsp, rflags | RFLAGS_IF | 2);
    return 0;
}

/* Is the kernel's code still what it was at the first call? */
static word sys_work(word a, word b, word c)
{
    static word expected;
    (void)a, (void)b, (void)c;
    for (u32 i = 0; i < 40; i++) {
        word found = sum(text_start, (word)(text_end - text_start));
        if (!expected)
            expected = found;
        if (found != expected)
            return -EFAULT;
    }
    return 0;
}

static word sys_bad_return(word a, word b, word c)
{
    (void)b, (void)c;
    bad_return(current_thread(), a);
    return 0;
}

word (*const syscall_table[SYS_COUNT])(word, word, word) = {
    [SYS_YIELD] = sys_yield,           [SYS_SLEEP] = sys_sleep, [SYS_GETPID] = sys_getpid,
    [SYS_CORRUPT] = report_corrupt,    [SYS_IMPOSSIBLE] = sys_impossible,
    [SYS_COPY] = sys_copy,             [SYS_COPY_END] = sys_copy_end,
    [SYS_UNMAP] = sys_unmap,           [SYS_JUMP] = sys_jump,
    [SYS_WORK] = sys_work,             [SYS_BAD_RETURN] = sys_bad_return,
};
