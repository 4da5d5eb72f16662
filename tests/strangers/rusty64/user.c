/* The threads of the processes: the same code at the same addresses on the same stacks in both. */
typedef unsigned long u64;

static u64 call(u64 nr, u64 a, u64 b)
{
    u64 r;
    asm volatile("syscall" : "=a"(r) : "0"(nr), "D"(a), "S"(b) : "rcx", "r11", "memory");
    return r;
}

static void spin(u64 seed);
static void talk(void);
static void touch(void);
static void own_fs(void);
static void vectors(u64 seed);

__attribute__((section(".text.0"), noreturn)) void begin(u64 which)
{
    switch (which) {
    case 0: spin(which + 0x1111111100);
    case 1: talk();
    case 2: touch();
    case 3: own_fs();
    }
    vectors(which);
    for (;;)
        ;
}

static void spin(u64 seed)
{
    for (;;) {
        u64 bad;
        asm volatile("pushq %%rbp\n"
                     "leaq 1(%1), %%rcx; leaq 2(%1), %%rdx; leaq 3(%1), %%rsi; leaq 4(%1), %%rdi; leaq 5(%1), %%r8\n"
                     "leaq 6(%1), %%r9; leaq 7(%1), %%r10; leaq 8(%1), %%r11; leaq 9(%1), %%r12; leaq 10(%1), %%r13\n"
                     "leaq 11(%1), %%r14; leaq 12(%1), %%r15; leaq 13(%1), %%rbp; movl $100000, %%ebx\n"
                     "std\n1: movq %%r9, -16(%%rsp); stc; leaq (%%rcx), %%rcx; jnc 2f; cmpq -16(%%rsp), %%r9; jne 2f\n"
                     "decl %%ebx; jnz 1b; cld\n"
                     "subq $1, %%rcx; subq $2, %%rdx; subq $3, %%rsi; subq $4, %%rdi; subq $5, %%r8; subq $6, %%r9\n"
                     "subq $7, %%r10; subq $8, %%r11; subq $9, %%r12; subq $10, %%r13; subq $11, %%r14\n"
                     "subq $12, %%r15; subq $13, %%rbp\n"
                     "xorl %%ebx, %%ebx; xorq %1, %%rcx; xorq %1, %%rdx; xorq %1, %%rsi; xorq %1, %%rdi; xorq %1, %%r8\n"
                     "xorq %1, %%r9; xorq %1, %%r10; xorq %1, %%r11; xorq %1, %%r12; xorq %1, %%r13; xorq %1, %%r14\n"
                     "xorq %1, %%r15; xorq %1, %%rbp\n"
                     "orq %%rcx, %%rbx; orq %%rdx, %%rbx; orq %%rsi, %%rbx; orq %%rdi, %%rbx; orq %%r8, %%rbx\n"
                     "orq %%r9, %%rbx; orq %%r10, %%rbx; orq %%r11, %%rbx; orq %%r12, %%rbx; orq %%r13, %%rbx\n"
                     "orq %%r14, %%rbx; orq %%r15, %%rbx; orq %%rbp, %%rbx; jmp 3f\n"
                     "2: cld; movl $1, %%ebx\n3: movq %%rbx, %0; popq %%rbp"
                     : "=a"(bad) : "a"(seed)
                     : "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory");
        if (bad)
            call(2, 0, 0);
    }
}

static void talk(void)
{
    u64 id = call(0, 0, 0);
    for (u64 n = 0;; n++) {
        asm volatile("std" ::: "memory");
        u64 got;
        asm volatile("syscall; cld" : "=a"(got) : "0"(0ul) : "rcx", "r11", "memory");
        if (got != id)
            call(2, 0, 0);
        if (n % 16 == 0)
            call(1, 0, 0);
        if (n % 64 == 0)
            call(6, 0, 0);
        for (volatile int i = 0; i < 1500; i++)
            ;
    }
}

static void touch(void)
{
    for (u64 n = 0;; n++) {
        volatile u64 *p = (u64 *)(0x800000 + (n % 16) * 4096);
        if (n % 3)
            *p = n;
        else
            call(3, (u64)p, n);
        if (n % 16 == 15)
            call(4, 0, 0);
        for (volatile int i = 0; i < 2000; i++)
            ;
    }
}

static void own_fs(void)
{
    for (u64 n = 0;; n++) {
        u64 *block = (u64 *)(0x630000 + n % 8 * 64), *seen;
        *block = (u64)block;
        call(5, (u64)block, 0);
        for (int i = 0; i < 400000; i++) {
            asm volatile("movq %%fs:0, %0" : "=r"(seen));
            if (seen != block)
                call(2, 0, 0);
        }
    }
}

typedef u64 pair __attribute__((vector_size(16)));

static void vectors(u64 seed)
{
    pair a = {seed, 1}, b = {2, seed};
    for (u64 n = 0;; n++) {
        a += b;
        a ^= (pair){n, n};
        asm volatile("" : "+x"(a), "+x"(b));
    }
}
