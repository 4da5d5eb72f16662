/* What the processes do. Everything is in the upper half. */
typedef unsigned long u64;

#define BASE 0xffff900000000000ul

enum { YIELD, FORK, EXIT, EXEC, PEEK, ALARM, SIGRETURN, SETCONTEXT, SLEEP, WAIT, SETFS, SAY };

static inline u64 call(u64 nr, u64 a, u64 b)
{
    u64 r;
    asm volatile("syscall" : "=a"(r) : "0"(nr), "D"(a), "S"(b) : "rcx", "r11", "memory");
    return r;
}

static void wrong(void) { call(SAY, (u64) "CORRUPT\n", 0); }

static void spin(u64 seed);
static void talk(u64 me);
static void family(void);
static void fibres(void);
static void floats(u64 me);
static void reads(void);
static void write_pages(u64 n);

__attribute__((section(".text.0"), noreturn)) void begin(u64 n)
{
    switch (n) {
    case 0: case 7: spin(n + 0x1234567800); break;
    case 1: talk(n); break;
    case 2: case 4: family(); break;
    case 3: fibres(); break;
    case 5: floats(n); break;
    case 6: reads(); break;
    default: write_pages(n); call(EXIT, 0, 0);
    }
    for (;;)
        ;
}

static volatile u64 alarms;

static __attribute__((noinline)) void on_alarm(void *frame)
{
    alarms++;
    for (volatile int i = 0; i < 3000; i++)
        ;
    call(SIGRETURN, (u64)frame, 0);
}

static void spin(u64 seed)
{
    call(ALARM, (u64)on_alarm, 20);
    for (;;) {
        u64 bad;
        asm volatile("leaq 1(%1), %%rbx; leaq 2(%1), %%rcx; leaq 3(%1), %%rdx; leaq 4(%1), %%rsi; leaq 5(%1), %%rdi\n"
                     "leaq 6(%1), %%r8; leaq 7(%1), %%r9; leaq 8(%1), %%r10; leaq 9(%1), %%r11; leaq 10(%1), %%r12\n"
                     "leaq 11(%1), %%r13; leaq 12(%1), %%r14; movl $100000, %%r15d\n"
                     "1: stc; leaq (%%r9), %%r9; jnc 2f; decl %%r15d; jnz 1b\n"
                     "subq $1, %%rbx; subq $2, %%rcx; subq $3, %%rdx; subq $4, %%rsi; subq $5, %%rdi; subq $6, %%r8\n"
                     "subq $7, %%r9; subq $8, %%r10; subq $9, %%r11; subq $10, %%r12; subq $11, %%r13; subq $12, %%r14\n"
                     "xorq %1, %%rbx; xorq %1, %%rcx; xorq %1, %%rdx; xorq %1, %%rsi; xorq %1, %%rdi; xorq %1, %%r8\n"
                     "xorq %1, %%r9; xorq %1, %%r10; xorq %1, %%r11; xorq %1, %%r12; xorq %1, %%r13; xorq %1, %%r14\n"
                     "orq %%rcx, %%rbx; orq %%rdx, %%rbx; orq %%rsi, %%rbx; orq %%rdi, %%rbx; orq %%r8, %%rbx\n"
                     "orq %%r9, %%rbx; orq %%r10, %%rbx; orq %%r11, %%rbx; orq %%r12, %%rbx; orq %%r13, %%rbx\n"
                     "orq %%r14, %%rbx; jmp 3f\n2: movl $1, %%ebx\n3: movq %%rbx, %0"
                     : "=a"(bad) : "a"(seed)
                     : "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory");
        if (bad)
            wrong();
    }
}

static void talk(u64 me)
{
    static u64 blocks[4][4];
    for (u64 n = 0;; n++) {
        u64 *block = blocks[n % 4], *seen, b = n * 3, c = ~n;
        *block = (u64)block;
        call(SETFS, (u64)block, 0);
        asm volatile("" : "+b"(b), "+d"(c));
        call(n % 8 == 0 ? YIELD : 99, n, me);
        asm volatile("" : "+b"(b), "+d"(c));
        for (volatile int i = 0; i < 500; i++)
            ;
        if (n % 16 == 3)
            asm volatile("std; syscall; cld" ::"a"(99ul) : "rcx", "r11", "memory");
        asm volatile("movq %%fs:0, %0" : "=r"(seen));
        if (seen != block || b != n * 3 || c != ~n)
            wrong();
    }
}

static void write_pages(u64 n)
{
    for (u64 page = 16; page < 40; page++)
        *(volatile u64 *)(BASE + page * 4096) = n;
}

static void family(void)
{
    for (u64 n = 0;; n++) {
        write_pages(n);
        if (call(FORK, 0, 0) == 0) {
            write_pages(n + 1);
            if (n & 1)
                call(EXEC, 100, 0);
            call(EXIT, 0, 0);
        }
        write_pages(n + 2);
        call(SLEEP, 4, 0);
        if (*(volatile u64 *)(BASE + 20 * 4096) != n + 2)
            wrong();
    }
}

/* Threads that the process switches between by a call that loads all of a context. */
struct frame {
    u64 r12, r13, r14, r15, rbx, rbp, rdi, rsi, rdx, rcx, rax, r11, r10, r9, r8, number, error, rip, cs, flags, rsp, ss;
};

static struct frame fibre[3];
static u64 fibre_stack[3][64];
static u64 now;

/* Keep what a call leaves alone, and go on behind it when somebody goes back to it. */
static __attribute__((noinline)) void swap_fibre(u64 to)
{
    struct frame *own = &fibre[now];
    now = to;
    asm volatile("movq %%rbx, 32(%0); movq %%rbp, 40(%0); movq %%rsp, 160(%0); leaq 1f(%%rip), %%rax; movq %%rax, 136(%0)\n"
                 "movq $0x202, 152(%0); movl $7, %%eax; movq %1, %%rdi; syscall; 1:"
                 ::"r"(own), "r"(&fibre[to])
                 : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory");
}

static void run_fibre(u64 n)
{
    for (u64 i = 0;; i++) {
        u64 keep = i * 5 + n;
        asm volatile("" : "+b"(keep));
        swap_fibre((n + 1 + i % 2) % 3);
        if (keep != i * 5 + n)
            wrong();
        for (volatile int k = 0; k < 2000; k++)
            ;
    }
}

static void fibres(void)
{
    for (u64 n = 1; n < 3; n++) {
        fibre[n].rip = (u64)run_fibre;
        fibre[n].rdi = n;
        fibre[n].flags = 0x202;
        fibre[n].rsp = (u64)&fibre_stack[n][63];
    }
    run_fibre(0);
}

static void floats(u64 me)
{
    double x = (double)me, y = 1;
    call(SETFS, BASE + 0x3000, 0);
    for (u64 n = 0;; n++) {
        x += 0.5;
        y += 0.5;
        asm volatile("" : "+x"(x), "+x"(y));
        if (x - y != (double)me - 1.0)
            wrong();
        if (x > 1e6) {
            x = (double)me;
            y = 1;
        }
    }
}

static void reads(void)
{
    for (u64 n = 0;; n++) {
        if (call(PEEK, n & 1 ? BASE : 0x100000000000ul, 0) != (n & 1 ? 0 : ~0ul))
            wrong();
        if (n % 64 == 0)
            call(SLEEP, 1, 0);
    }
}
