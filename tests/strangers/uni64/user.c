/* What the processes run: with a red zone, SSE and thread-local data behind FS. */
typedef unsigned long u64;

static u64 call(u64 nr, u64 a)
{
    u64 r;
    asm volatile("int $0x80" : "=a"(r) : "0"(nr), "D"(a) : "memory");
    return r;
}

static void spin(u64 seed);
static void talk(u64 me);
static void touch(void);
static void floats(u64 me);

__attribute__((section(".text.0"), noreturn)) void begin(u64 n)
{
    if (n == 0)
        spin(n + 0x1234567800);
    if (n == 1)
        talk(n);
    if (n == 2)
        touch();
    floats(n);
    for (;;)
        ;
}

static u64 leaf(u64 n)
{
    volatile u64 a[6];
    for (int i = 0; i < 6; i++)
        a[i] = n + (u64)i;
    for (volatile int i = 0; i < 500; i++)
        ;
    return a[0] + a[1] + a[2] + a[3] + a[4] + a[5] - 6 * n;
}

static void spin(u64 seed)
{
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
            call(2, 0);
    }
}

static void talk(u64 me)
{
    static u64 blocks[4][4];
    for (u64 n = 0;; n++) {
        u64 *block = blocks[n % 4], *seen;
        *block = (u64)block;
        call(3, (u64)block);
        call(n % 8 == 0 ? 1 : 9, n);
        asm volatile("movq %%fs:0, %0" : "=r"(seen));
        if (leaf(me + n) != 15 || seen != block)
            call(2, 0);
    }
}

static void touch(void)
{
    for (u64 n = 0;; n++) {
        *(volatile u64 *)(0x8000010000 + n % 8 * 4096) = n;
        if (leaf(n) != 15)
            call(2, 0);
    }
}

static void floats(u64 me)
{
    double x = (double)me, y = 1;
    for (;;) {
        x += 0.5;
        y += 0.5;
        asm volatile("" : "+x"(x), "+x"(y));
        if (x - y != (double)me - 1.0)
            call(2, 0);
        if (x > 1e6) {
            x = (double)me;
            y = 1;
        }
    }
}
