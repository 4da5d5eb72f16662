/* FS and GS bases of several processes: by system call, by instruction where the CPU and the kernel let it, by selector. */
#include "check.h"

#include <asm/ldt.h>
#include <sys/auxv.h>

static __thread unsigned long own;

static void spin(unsigned seed)
{
    struct regs in, out;

    regs_fill(&in, seed);
    in.reg[CX] = 100000;
    regs_run(&in, &out, op_spin);
    in.reg[CX] = 0;
    regs_check("beside bases", &out, &in, 0);
}

#ifdef __x86_64__

#include <asm/prctl.h>

#define HWCAP2_FSGSBASE 2

static long prctl_base(int code, unsigned long value)
{
    long result;

    __asm__ volatile("syscall" : "=a"(result) : "0"(SYS_arch_prctl), "D"(code), "S"(value) : "rcx", "r11", "memory");
    return result;
}

static unsigned long gs_word(void)
{
    unsigned long word;

    __asm__ volatile("mov %%gs:0, %0" : "=r"(word));
    return word;
}

static unsigned long fs_word(void)
{
    unsigned long word;

    __asm__ volatile("mov %%fs:0, %0" : "=r"(word));
    return word;
}

static void by_call(unsigned long *place, unsigned long magic)
{
    unsigned long is = 0;

    check(prctl_base(ARCH_SET_GS, (unsigned long)place) == 0, "ARCH_SET_GS");
    spin(magic);
    check(gs_word() == magic, "gs:0 is %lx, not %lx", gs_word(), magic);
    check(prctl_base(ARCH_GET_GS, (unsigned long)&is) == 0 && is == (unsigned long)place, "ARCH_GET_GS gave %lx", is);
}

/* The C library's thread-local storage lies behind FS: until it is back, nothing of the library may be called. */
static void fs_by_call(unsigned long *place, unsigned long magic)
{
    unsigned long library = 0, word, before = own;
    struct regs in, out;

    regs_fill(&in, magic);
    in.reg[CX] = 100000;
    prctl_base(ARCH_GET_FS, (unsigned long)&library);
    prctl_base(ARCH_SET_FS, (unsigned long)place);
    regs_run(&in, &out, op_spin);
    word = fs_word();
    prctl_base(ARCH_SET_FS, library);
    in.reg[CX] = 0;
    regs_check("with an FS base of its own", &out, &in, 0);
    check(word == magic, "fs:0 is %lx, not %lx", word, magic);
    check(own == before, "thread-local storage is another's");
}

static void by_instruction(unsigned long *place, unsigned long magic)
{
    unsigned long is;

    __asm__ volatile("wrgsbase %0" ::"r"(place));
    spin(magic);
    __asm__ volatile("rdgsbase %0" : "=r"(is));
    check(is == (unsigned long)place && gs_word() == magic, "the GS base is %lx, not %p", is, (void *)place);
    __asm__ volatile("wrgsbase %0" ::"r"(0ul));
    spin(magic);
    __asm__ volatile("rdgsbase %0" : "=r"(is));
    check(is == 0, "the GS base is %lx, not 0", is);
}

static void worker(int index)
{
    unsigned long words[2] = {0};
    int instructions = getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE;

    for (int i = 0; i < 60 * rounds; i++) {
        unsigned long *place = &words[i % 2], magic = index * 1000003ul + i;
        own = *place = magic;
        by_call(place, magic);
        fs_by_call(place, magic);
        if (instructions)
            by_instruction(place, magic);
        check(own == magic, "thread-local storage is another's");
    }
    check(prctl_base(ARCH_SET_GS, 1ul << 63) == -EPERM, "a base in the kernel's half was taken");
}

#else

static void worker(int index)
{
    unsigned words[2] = {0};
    struct user_desc entry = {.entry_number = -1, .limit = 0xfffff, .seg_32bit = 1, .limit_in_pages = 1, .useable = 1};

    for (int i = 0; i < 60 * rounds; i++) {
        unsigned *place = &words[i % 2], word, selector;
        own = *place = index * 1000003u + i;
        entry.base_addr = (unsigned)place;
        check(syscall(SYS_set_thread_area, &entry) == 0, "set_thread_area: %s", strerror(errno));
        __asm__ volatile("mov %w0, %%fs" ::"r"(entry.entry_number * 8 + 3));
        spin(i);
        __asm__ volatile("mov %%fs:0, %0; mov %%fs, %1" : "=r"(word), "=r"(selector));
        check((selector & 0xffff) == entry.entry_number * 8 + 3, "fs is %x", selector);
        check(word == *place, "fs:0 is %x, not %x", word, *place);
        check(own == *place, "thread-local storage is another's");
        __asm__ volatile("mov %w0, %%fs" ::"r"(0));
    }
}

#endif

void workload_bases(void)
{
    pid_t children[3];

    for (int i = 0; i < 3; i++)
        children[i] = start(worker, i + 1);
    for (int i = 0; i < 3; i++)
        reap(children[i]);
}
