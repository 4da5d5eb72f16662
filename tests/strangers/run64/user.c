/* Threads in user mode: what each does follows from its number. Its own words are at FS:0 and GS:0. Of
 * two kernels: with FSGSBASE it moves them by itself. */
typedef unsigned long u64;
#define ASM asm volatile

static u64 call(u64 nr, u64 a, u64 b)
{
    u64 r;
    ASM("syscall" : "=a"(r) : "0"(nr), "D"(a), "S"(b) : "rcx", "r11", "memory");
    return r;
}

static void wrong(void) { call(2, 0, 0); }

#include "../spin64.h"

static void talk(u64 n)
{
    for (u64 r = 0;; r++) {
        register u64 rbx asm("rbx") = n, r9 asm("r9") = ~r, r12 asm("r12") = r * 3, rdx asm("rdx") = r + 5;
        ASM("" : "+r"(rbx), "+r"(r9), "+r"(r12), "+r"(rdx));
        u64 got;
        ASM("syscall" : "=a"(got), "+r"(rbx), "+r"(r9), "+r"(r12), "+r"(rdx) : "0"(0ul), "D"(r) : "rcx", "r11", "memory");
        if (got != n || rbx != n || r9 != ~r || r12 != r * 3 || rdx != r + 5)
            wrong();
        ASM("stc; syscall; jc 1f; movq $2, %%rax; syscall; 1:" ::"a"(r % 7 ? 0ul : 1ul) : "rcx", "r11", "memory", "cc");
        spin(r, 400);
        if (r % 8 == 0)
            call(6, 1, 0);
        if (r % 5 == 0)
            call(7, r, 40000);
    }
}

static void local(u64 n)
{
    for (u64 r = 0;; r++) {
        u64 a, b;
        ASM("movq %%fs:0, %0; movq %%gs:0, %1" : "=r"(a), "=r"(b));
        if (a != n || b != n + 100)
            wrong();
#ifdef FSGSBASE
        a = 0x610000 + n * 0x100 + r % 2 * 0x20000, b = a + 0x10000;
        ASM("wrfsbase %0; wrgsbase %1; movq %2, %%fs:0; movq %3, %%gs:0" :: "r"(a), "r"(b), "r"(n), "r"(n + 100) : "memory");
#endif
        spin(r, 2000);
        if (r % 16 == 0)
            call(1, 0, 0);
    }
}

static void floats(u64 n)
{
    double a = (double)(n + 1), x;
    for (u64 r = 0;; r++) {
        x = a;
        for (int i = 0; i < 6000; i++)
            x += a;
        if (x != a * 6001)
            wrong();
        if (r % 8 == 0)
            call(6, 1, 0);
    }
}

static void demand(u64 n)
{
    for (u64 r = 0;; r++) {
        volatile u64 *p = (u64 *)(0x800000 + (n * 7 + r) % 16 * 4096 + n * 64);
        *p = r;
        spin(r + *p, 900);
        if (r % 9 == 0)
            call(4, 0, 0);
        call(3, 0x800000 + r % 16 * 4096, r);
#ifndef NO_BREAK
        ASM("int3");
#endif
    }
}

__attribute__((section(".text.0"), noreturn)) void begin(u64 n)
{
    switch (n % 7) {
    case 0: case 1: local(n);
    case 2: talk(n);
    case 3: case 4: demand(n);
    case 5: floats(n);
    }
    for (u64 r = n * 1000;; r++)
        spin(r, 50000);
}
