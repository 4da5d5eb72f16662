/* Threads: registers that never change, calls, upcalls after which a thread goes on by itself, clones on other stacks. */
typedef unsigned long u64;
#define ASM asm volatile

static u64 call(u64 nr, u64 a, u64 b)
{
    u64 r;
    ASM("syscall" : "=a"(r) : "0"(nr), "D"(a), "S"(b) : "rcx", "r11", "memory");
    return r;
}

static void wrong(void) { call(2, 0, 0); }

static void spin(u64 seed, u64 rounds)
{
    u64 bad;
    ASM("pushq %%rbp\n"
        "leaq 1(%%rax), %%rcx; leaq 2(%%rax), %%rdx; leaq 3(%%rax), %%rsi; leaq 4(%%rax), %%rdi; leaq 5(%%rax), %%r8\n"
        "leaq 6(%%rax), %%r9; leaq 7(%%rax), %%r10; leaq 8(%%rax), %%r11; leaq 9(%%rax), %%r12; leaq 10(%%rax), %%r13\n"
        "leaq 11(%%rax), %%r14; leaq 12(%%rax), %%r15; leaq 13(%%rax), %%rbp\n"
        "1: movq %%r9, -16(%%rsp); stc; leaq (%%rcx), %%rcx; jnc 2f; cmpq -16(%%rsp), %%r9; jne 2f\n"
        "decl %%ebx; jnz 1b\n"
        "subq $1, %%rcx; subq $2, %%rdx; subq $3, %%rsi; subq $4, %%rdi; subq $5, %%r8; subq $6, %%r9\n"
        "subq $7, %%r10; subq $8, %%r11; subq $9, %%r12; subq $10, %%r13; subq $11, %%r14; subq $12, %%r15\n"
        "cmpq %%rcx, %%rax; jne 2f; cmpq %%rdx, %%rax; jne 2f; cmpq %%rsi, %%rax; jne 2f; cmpq %%rdi, %%rax; jne 2f\n"
        "cmpq %%r8, %%rax; jne 2f; cmpq %%r9, %%rax; jne 2f; cmpq %%r10, %%rax; jne 2f; cmpq %%r11, %%rax; jne 2f\n"
        "cmpq %%r12, %%rax; jne 2f; cmpq %%r13, %%rax; jne 2f; cmpq %%r14, %%rax; jne 2f; cmpq %%r15, %%rax; jne 2f\n"
        "xorl %%ebx, %%ebx; jmp 3f\n"
        "2: movl $1, %%ebx\n3: movq %%rbx, %0; popq %%rbp"
        : "=a"(bad), "+b"(rounds) : "a"(seed)
        : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory");
    if (bad)
        wrong();
}

/* RDI: what was interrupted, in the kernel's order. It goes on by our own iretq. */
__attribute__((naked, used)) static void upcall(void)
{
    ASM("movl $500, %ecx\n1: pushq %rcx; popq %rcx; decl %ecx; jnz 1b\n"
        "pushq 24(%rdi); pushq 32(%rdi); pushq 8(%rdi); pushq 16(%rdi); pushq (%rdi)\n"
        "movq 40(%rdi), %r15; movq 48(%rdi), %r14; movq 56(%rdi), %rax; movq 64(%rdi), %rbx; movq 72(%rdi), %rcx\n"
        "movq 80(%rdi), %rdx; movq 88(%rdi), %rsi; movq 104(%rdi), %rbp; movq 112(%rdi), %r8; movq 120(%rdi), %r9\n"
        "movq 128(%rdi), %r10; movq 136(%rdi), %r11; movq 144(%rdi), %r12; movq 152(%rdi), %r13; movq 96(%rdi), %rdi\n"
        "iretq");
}

static void told(void)
{
    u64 area[64] __attribute__((aligned(16)));
    u64 shared = ((u64)area & ~0xffful) - 0x1000;
    for (u64 n = 0;; n++) {
        call(4, (u64)upcall, shared);
        spin(n * 3, 60000);
        if (n % 8 == 0)
            call(3, 1, 0);
    }
}

static void clones(void)
{
    static u64 stacks[2][512];
    for (u64 n = 0;; n++) {
        u64 keep = n * 11, made, *top = &stacks[n & 1][500];
        ASM("syscall; testq %%rax, %%rax; jnz 2f\n"
            "movl $3000, %%ecx\n1: pushq %%rcx; popq %%rdx; decl %%ecx; jnz 1b\n"
            "movl $6, %%eax; syscall\n2:"
            : "=a"(made), "+b"(keep) : "0"(5ul), "D"(top) : "rcx", "rdx", "r11", "memory");
        if (keep != n * 11)
            wrong();
        call(3, 2, 0);
        spin(n, 5000);
    }
}

static void talk(void)
{
    u64 id = call(0, 0, 0);
    for (u64 n = 0;; n++) {
        register u64 r12 asm("r12") = n;
        asm volatile("" : "+r"(r12));
        if (call(0, n, 0) != id)
            wrong();
        asm volatile("" : "+r"(r12));
        if (r12 != n)
            wrong();
        if (n % 16 == 0)
            call(1, 0, 0);
        ASM("ud2");
        spin(n, 800);
    }
}

__attribute__((section(".text.0"), noreturn)) void begin(u64 which)
{
    for (u64 n = 0;; n++) {
        if (which == 0)
            spin(0x11111111, 50000);
        else if (which == 1)
            told();
        else if (which == 2)
            talk();
        else if (which == 3)
            clones();
        spin(n, 3000);
        call(3, 1, 0);
    }
}
