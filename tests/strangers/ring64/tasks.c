/* What the tasks do: compute in all registers, in floating point, ask for memory that is not there, wait for each other. */
typedef unsigned long u64;
#define ASM asm volatile
void sleep(u64 n), up(void), down(void), print(const char *s), forget_page(void);
u64 peek(u64 at, int *ok);

static void wrong(void) { print("CORRUPT\n"); }
static inline u64 yield(void) { u64 r; ASM("int $0x81" : "=a"(r)::"memory"); return r; }

static void spin(u64 seed, u64 rounds)
{
    u64 bad;
    ASM("pushq %%rbp\n"
        "leaq 1(%%rax), %%rcx; leaq 2(%%rax), %%rdx; leaq 3(%%rax), %%rsi; leaq 4(%%rax), %%rdi; leaq 5(%%rax), %%r8\n"
        "leaq 6(%%rax), %%r9; leaq 7(%%rax), %%r10; leaq 8(%%rax), %%r11; leaq 9(%%rax), %%r12; leaq 10(%%rax), %%r13\n"
        "leaq 11(%%rax), %%r14; leaq 12(%%rax), %%r15; leaq 13(%%rax), %%rbp; std\n"
        "1: stc; leaq (%%rcx), %%rcx; jnc 2f; decl %%ebx; jnz 1b; cld\n"
        "subq $1, %%rcx; subq $2, %%rdx; subq $3, %%rsi; subq $4, %%rdi; subq $5, %%r8; subq $6, %%r9\n"
        "subq $7, %%r10; subq $8, %%r11; subq $9, %%r12; subq $10, %%r13; subq $11, %%r14; subq $12, %%r15\n"
        "cmpq %%rcx, %%rax; jne 2f; cmpq %%rdx, %%rax; jne 2f; cmpq %%rsi, %%rax; jne 2f; cmpq %%rdi, %%rax; jne 2f\n"
        "cmpq %%r8, %%rax; jne 2f; cmpq %%r9, %%rax; jne 2f; cmpq %%r10, %%rax; jne 2f; cmpq %%r11, %%rax; jne 2f\n"
        "cmpq %%r12, %%rax; jne 2f; cmpq %%r13, %%rax; jne 2f; cmpq %%r14, %%rax; jne 2f; cmpq %%r15, %%rax; jne 2f\n"
        "xorl %%ebx, %%ebx; jmp 3f\n"
        "2: movl $1, %%ebx\n3: cld; movq %%rbx, %0; popq %%rbp"
        : "=a"(bad), "+b"(rounds) : "a"(seed)
        : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory");
    if (bad)
        wrong();
}

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
