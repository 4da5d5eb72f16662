/* Processes: what each does follows from its number. Memory from 600000h is its own; words at FS:0 and GS:0. */
typedef unsigned long u64;
#define ASM asm volatile

static u64 call(u64 nr, u64 a, u64 b)
{
    ASM("syscall" : "+a"(nr) : "D"(a), "S"(b) : "rcx", "r11", "memory");
    return nr;
}

static void wrong(void) { call(2, 0, 0); }

#include "../spin64.h"

enum { SELF, YIELD, BAD, SLEEP, BASES, HANDLER, SIGRETURN, UNMASK, ALT, FORK, VFORK, EXEC, EXIT, WAIT, WORK, SLOW, MASK };

/* Goroutines: each has a stack; one that was stopped by a signal goes on by the return of that, one that gave way by ret. */
#define GS 4
struct g { u64 sp, frame, runs; };
struct runtime { u64 inside, now, switches; struct g g[GS]; };
#define R ((volatile struct runtime *)0x640000)

void go_park(volatile u64 *sp, u64 to), go_leave(volatile u64 *sp), go_jump(u64 to), go_start(void);
__asm__("go_park: pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15; movq %rsp, (%rdi); movq %rsi, %rsp\n"
    "1: popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret\n"
    "go_jump: movq %rdi, %rsp; jmp 1b\n"
    "go_away: pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15; movq %rsp, (%rdi)\n"
    "movq %rsi, %rdi; movl $6, %eax; syscall; ud2\n"
    "go_start: call go_body; ud2\n");
void go_away(volatile u64 *sp, u64 frame);

static u64 next(void)
{
    R->switches++;
    return R->now = (R->now + 1) % GS;
}

static void gosched(void)
{
    R->inside = 1;
    volatile struct g *me = &R->g[R->now], *to = &R->g[next()];
    u64 frame = to->frame;
    to->frame = 0;
    if (frame) {
        call(MASK, 0, 0);
        R->inside = 0;
        go_away(&me->sp, frame);
    } else
        go_park(&me->sp, to->sp);
    R->inside = 0;
}

static void preempt(u64 frame)
{
    if (R->inside == 0) {
        R->g[R->now].frame = frame;
        volatile struct g *to = &R->g[next()];
        if (!to->frame) {
            R->inside = 1;
            call(UNMASK, 0, 0);
            go_jump(to->sp);
        }
        frame = to->frame;
        to->frame = 0;
    }
    call(SIGRETURN, frame, 0);
}

__attribute__((used, noreturn)) void go_body(void)
{
    R->inside = 0;
    u64 n = R->now;
    for (u64 r = n * 1000;; r++) {
        spin(r, 3000 + n * 500);
        R->g[n].runs++;
        if (r % 16 == n)
            gosched();
        if (R->now != n)
            wrong();
    }
}

static __attribute__((noreturn)) void go(void)
{
    for (u64 n = 1; n < GS; n++) {
        u64 *sp = (u64 *)(0x700000 + n * 0x8000);
        *--sp = 0;
        *--sp = (u64)go_start;
        sp -= 6;
        R->g[n].sp = (u64)sp;
    }
    call(HANDLER, (u64)preempt, 3);
    go_body();
}

/* A handler that does not return but jumps back to where its program was before. */
static volatile u64 *const jump = (volatile u64 *)0x650000;
__attribute__((used)) static void jump_away(u64 frame)
{
    (void)frame;
    call(UNMASK, 0, 0);
    ASM("movq 0x650000, %rbx; movq 0x650008, %rbp; movq 0x650010, %rsp; movq 0x650018, %rcx; jmp *%rcx");
}

static __attribute__((noreturn)) void jumps(void)
{
    call(ALT, 0x6f0000, 0);
    ASM("movq %%rbx, 0x650000; movq %%rbp, 0x650008; movq %%rsp, 0x650010; leaq 1f(%%rip), %%rax; movq %%rax, 0x650018\n"
        "1:" ::: "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory");
    jump[8]++;
    call(HANDLER, (u64)jump_away, 5);
    for (u64 r = jump[8] * 77;; r++) {
        spin(r, 20000);
        if (r % 4 == 0)
            call(YIELD, 0, 0);
    }
}

static void handler(u64 frame)
{
    spin(frame, 50);
    call(SELF, 0, 0);
    ((u64 *)frame)[19] |= 0x3000;
    call(SIGRETURN, frame, 0);
}

static __attribute__((noreturn)) void signals(void)
{
    call(HANDLER, (u64)handler, 4);
    for (u64 r = 5;; r++) {
        spin(r, 20000);
        if (r % 8 == 0)
            call(SLEEP, 1, 0);
    }
}

static __attribute__((noreturn)) void forks(void)
{
    for (u64 r = 0;; r++) {
        register u64 r12 asm("r12") = r * 5, r9 asm("r9") = ~r;
        u64 child;
        ASM("syscall" : "=a"(child), "+r"(r12), "+r"(r9) : "0"((u64)FORK) : "rcx", "r11", "memory");
        if (r12 != r * 5 || r9 != ~r)
            wrong();
        if (child == 0) {
            spin(r, 3000);
            if (r % 2)
                call(EXEC, 6, 0);
            call(EXIT, 0, 0);
        }
        spin(r, 30000);
        if (child != ~0ul)
            call(WAIT, child, 0);
        call(SLEEP, 3, 0);
    }
}

static __attribute__((noreturn)) void vforks(void)
{
    for (u64 r = 0;; r++) {
        u64 child = call(VFORK, 0, 0);
        if (child == 0) {
            *(volatile u64 *)0x660000 = r;
            spin(r, 3000);
            if (r % 2)
                call(EXEC, 6, 0);
            call(EXIT, 0, 0);
        }
        if (child != ~0ul && *(volatile u64 *)0x660000 != r)
            wrong();
        spin(r, 20000);
        if (child != ~0ul)
            call(WAIT, child, 0);
        call(SLEEP, 2, 0);
    }
}

static __attribute__((noreturn)) void talk(u64 n)
{
    for (u64 r = 0;; r++) {
        register u64 rbx asm("rbx") = n, r9 asm("r9") = ~r, r12 asm("r12") = r * 3, rdx asm("rdx") = r + 5;
        u64 got, a, b;
        ASM("syscall" : "=a"(got), "+r"(rbx), "+r"(r9), "+r"(r12), "+r"(rdx) : "0"(r % 3 ? 0ul : 15ul) : "rcx", "r11", "memory");
        if ((r % 3 && got != n) || rbx != n || r9 != ~r || r12 != r * 3 || rdx != r + 5)
            wrong();
        ASM("movq %%fs:0, %0; movq %%gs:0, %1" : "=r"(a), "=r"(b));
        if (a != n || b != n + 100)
            wrong();
        spin(r, 2000);
        if (r % 8 == 0)
            call(SLEEP, 1, 0);
        if (r % 5 == 0)
            call(WORK, r, 20000);
        ASM("int3");
    }
}

static __attribute__((noreturn)) void floats(u64 n)
{
    double a = (double)(n + 1), x;
    for (u64 r = 0;; r++) {
        x = a;
        for (int i = 0; i < 6000; i++)
            x += a;
        if (x != a * 6001)
            wrong();
        if (r % 8 == 0)
            call(SLEEP, 1, 0);
    }
}

__attribute__((section(".text.0"), noreturn)) void begin(u64 n)
{
    switch (n) {
    case 0: go();
    case 1: jumps();
    case 2: forks();
    case 3: vforks();
    case 4: talk(n);
    case 5: case 7: floats(n);
    case 6: /* a program that ends */
        for (u64 r = 0; r < 3; r++)
            spin(r, 5000);
        call(EXIT, 0, 0);
        break;
    case 8: signals();
    }
    for (;;)
        spin(n, 10000);
}
