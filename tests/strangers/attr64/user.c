/* The threads of both processes: what each does follows from its number. */
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
    static u64 none;
    register u64 rbx asm("rbx") = n, r9 asm("r9") = ~n;
    ASM("" : "+r"(rbx), "+r"(r9));
    u64 r;
    ASM("syscall" : "=a"(r), "+r"(rbx), "+r"(r9) : "0"(3ul), "D"(&none), "S"(n) : "rcx", "r11", "memory");
    if (r != n || rbx != n || r9 != ~n)
        wrong();
    if (n % 2 == 0)
        ASM("int3");
    if (n % 16 == 1)
        ASM("hlt");
    if (n % 32 == 0 && call(3, 0x8000000000000000ul, 0) != ~0ul)
        wrong();
    if (n % 16 == 0)
        call(n % 32 ? 1 : 6, 1, 0);
}

static void touch(u64 n)
{
    volatile u64 *p = (u64 *)(0x800000 + n % 16 * 4096);
    if (n % 3)
        *p = n;
    else
        call(3, (u64)p, n);
    if (n % 16 == 15)
        call(4, 0, 0);
    spin(n, 500);
}

static void bases(u64 n, u64 which)
{
    u64 *at = (u64 *)(0x630000 + which * 0x400 + n % 4 * 64), f, g;
    at[0] = n;
    call(5, (u64)at, (u64)at);
    spin(n, 300000);
    ASM("movq %%fs:0, %0; movq %%gs:0, %1" : "=r"(f), "=r"(g));
    if (f != n || g != n)
        wrong();
}

typedef u64 pair __attribute__((vector_size(16)));

static void vectors(u64 n)
{
    pair a = {n, 1}, b = {2, n}, c = a;
    for (u64 i = 0; i < 20000; i++)
        ASM("paddq %1, %0; psubq %1, %0" : "+x"(a), "+x"(b));
    if (a[0] != c[0] || a[1] != c[1])
        wrong();
}

__attribute__((section(".text.0"), noreturn)) void begin(u64 which)
{
    for (u64 n = 0;; n++)
        switch (which) {
        case 0: spin(n, 100000); break;
        case 1: talk(n); break;
        case 2: touch(n); break;
        case 3: bases(n, which); break;
        default: vectors(n);
        }
}
