/* Threads that check what they have in registers: while they compute, call, send, fault and read the made-up clock. */
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

static u64 stamp(void) { u32 a, d; ASM("rdtsc" : "=a"(a), "=d"(d)); return a | (u64)d << 32; }

static void send_to(u64 whom) { for (u64 n = 1;; n++) { call(4, whom, n); if (n % 9 == 0) spin(n, 900); } }

static void receive(void)
{
    for (u64 n = 1;; n++)
        if (call(5, 0, 0) != n)
            wrong();
}

static void clock(u64 id)
{
    u64 last = stamp();
    for (u64 n = 0;; n++) {
        register u64 rbx asm("rbx") = n * 5;
        ASM("" : "+r"(rbx));
        u64 now = stamp();
        ASM("" : "+r"(rbx));
        if (now <= last || rbx != n * 5)
            wrong();
        last = now;
        u64 mine, also;
        ASM("movq %%fs:0, %0; movq %%gs:0, %1" : "=r"(mine), "=r"(also));
        if (mine != id || also != id)
            wrong();
        if (n % 8 == 0)
            call(3, 1, 0);
        spin(n, 500);
    }
}

static void touch(void)
{
    volatile u64 *memory = (u64 *)0x800000;
    for (u64 n = 0;; n++) {
        memory[(n * 7 & 511) * 512] = n;
        spin(n, 300);
        if (n % 16 == 0)
            call(1, 0, 0);
    }
}

__attribute__((section(".text.0"), noreturn)) void begin(u64 which)
{
    for (u64 n = 0;; n++) {
        switch (which) {
        case 0: spin(0x22222222, 60000); break;
        case 1: receive(); break;
        case 2: case 5: clock(which); break;
        case 3: touch(); break;
        case 4: send_to(1); break;
        case 6: for (;;) { call(6, 0, 0); call(3, 1, 0); } break;
        case 7: ASM("ud2"); spin(n, 2000); break;
        case 8: if (call(0, 0, 0) != which) wrong(); spin(n, 700); call(3, 1, 0); break;
        default: spin(n * 3, 20000); call(1, 0, 0);
        }
    }
}
