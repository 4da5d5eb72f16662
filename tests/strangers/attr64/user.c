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

/* Every register holds, and the flags, for a while. */
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
