/* Threads that check what they have in registers, and the FS and GS bases that they set themselves, again and again. */
typedef unsigned long u64;
typedef unsigned int u32;
#define ASM asm volatile

static u64 call(u64 nr, u64 a, u64 b)
{
    u64 r;
    ASM("syscall" : "=a"(r) : "0"(nr), "D"(a), "S"(b) : "rcx", "r11", "memory");
    return r;
}

static void wrong(void) { call(2, 0, 0); }

#include "../spin64.h"

/* The bases move: nothing but user code knows. */
static void bases(u64 which)
{
    static u64 words[16][4];
    for (u64 n = 0;; n++) {
        u64 *at = &words[which][n & 3], f, g;
        *at = n;
        ASM("wrfsbase %0" ::"r"(at));
        ASM("wrgsbase %0" ::"r"(at));
        spin(n, 400);
        if (n % 16 == 0)
            call(3, 1, 0);
        ASM("movq %%fs:0, %0; movq %%gs:0, %1" : "=r"(f), "=r"(g));
        if (f != n || g != n)
            wrong();
    }
}

static void talk(u64 which)
{
    for (u64 n = 0;; n++) {
        register u64 r15 asm("r15") = n;
        ASM("" : "+r"(r15));
        if (call(0, 0, 0) != which || call(4, n % 500, 0) != n % 500)
            wrong();
        if (n % 8 == 0)
            ASM("int3");
        if (n % 32 == 0)
            ASM("ud2");
        if (n % 64 == 0)
            call(3, 1, 0);
        ASM("" : "+r"(r15));
        if (r15 != n)
            wrong();
    }
}

__attribute__((section(".text.0"), noreturn)) void begin(u64 which)
{
    for (u64 n = 0;; n++) {
        if (which < 4)
            bases(which);
        else if (which < 7)
            talk(which);
        spin(n * 3, 40000);
        call(n % 2 ? 4 : 3, 2000 * (n % 2) + 1, 0);
    }
}
