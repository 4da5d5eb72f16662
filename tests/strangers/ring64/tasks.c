/* What the tasks do: compute in all registers, in floating point, ask for memory that is not there, wait for each other. */
typedef unsigned long u64;
#define ASM asm volatile
void sleep(u64 n), up(void), down(void), print(const char *s), forget_page(void);
u64 peek(u64 at, int *ok);

static void wrong(void) { print("CORRUPT\n"); }
static inline u64 yield(void) { u64 r; ASM("int $0x81" : "=a"(r)::"memory"); return r; }

#include "../spin64.h"

static __attribute__((noreturn)) void idle(u64 n) { for (;;) { (void)n; ASM("sti; hlt"); } }

static __attribute__((noreturn)) void compute(u64 n)
{
    for (u64 r = 0;; r++) {
        spin(n * 1000 + r, 30000);
        if (r % 4 == 0)
            sleep(1);
    }
}

static __attribute__((noreturn)) void local(u64 n)
{
    for (u64 r = 0;; r++) {
        u64 mine;
        ASM("movq %%fs:0, %0" : "=r"(mine));
        if (mine != n)
            wrong();
        spin(r, 400);
        if (r % 32 == 0)
            sleep(1);
        else if (r % 8 == 0)
            yield();
    }
}

static __attribute__((noreturn)) void looker(u64 n)
{
    for (u64 r = 0;; r++) {
        register u64 r12 asm("r12") = r * 3 + n;
        ASM("" : "+r"(r12));
        int ok = 7;
        u64 got = peek(r % 2 ? 0x4000000000 + r * 4096 : (u64)&ok, &ok);
        (void)got;
        ASM("" : "+r"(r12));
        if (r12 != r * 3 + n || ok != (r % 2 == 0))
            wrong();
        spin(r, 700);
        if (r % 16 == 0)
            yield();
    }
}

static __attribute__((noinline)) u64 deep(u64 n) { volatile u64 here[10]; here[0] = n; return n ? deep(n - 1) + here[0] : 0; }

static __attribute__((noreturn)) void toucher(u64 n)
{
    for (u64 r = 0;; r++) {
        *(volatile u64 *)(0x5000000 + r % 512 * 8) = r;
        spin(r, 500);
        if (deep(4) != 10)
            wrong();
        forget_page();
        ASM("int3");
        if (r % 8 == n % 8)
            sleep(2);
    }
}

static __attribute__((noreturn)) void floats(u64 n)
{
    double a = (double)n, b = 1.0 / (double)(n + 1);
    for (u64 r = 0;; r++) {
        double x = a, y = 0;
        for (int i = 0; i < 3000; i++)
            x += b, y += x;
        double again = a, sum = 0;
        for (volatile int i = 0; i < 3000; i++)
            again += b, sum += again;
        if (x != again || y != sum)
            wrong();
        if (r % 8 == 0)
            sleep(1);
    }
}

/* A leaf with data below RSP. */
static u64 leaf(u64 n)
{
    u64 r;
#ifdef BUG_RED_ZONE
    ASM("movq %1, -24(%%rsp); movl $500, %%ecx; 1: addq $1, -24(%%rsp); decl %%ecx; jnz 1b; movq -24(%%rsp), %0"
#else
    ASM("movq %1, %0; movl $500, %%ecx; 1: addq $1, %0; decl %%ecx; jnz 1b"
#endif
        : "=&r"(r) : "r"(n) : "rcx", "memory");
    return r;
}

static __attribute__((noreturn)) void waiter(u64 n)
{
    for (u64 r = 0;; r++) {
        down();
        if (leaf(r) != r + 500)
            wrong();
        u64 rest;
        ASM("xorl %%edx, %%edx; xorl %%ecx, %%ecx; divq %%rcx" : "=a"(rest) : "0"(n) : "rcx", "rdx");
        if (rest)
            wrong();
    }
}

static __attribute__((noreturn)) void critical(u64 n)
{
    for (u64 r = 0;; r++) {
        u64 f;
        ASM("pushfq; cli; movl $3000, %%ecx; 1: decl %%ecx; jnz 1b; pushfq; popq %0; popfq" : "=r"(f)::"rcx", "memory");
        if (f & 0x200)
            wrong();
        spin(r + n, 300);
        up();
        leaf(r);
        if (r % 8 == 0)
            sleep(1);
    }
}

void (*const bodies[])(u64) = {idle, compute, local, looker, toucher, floats, floats, waiter, critical, compute};
