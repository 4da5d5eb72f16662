/* Threads of the processes: registers that never change, calls, signals, vfork and exec, TLS behind FS and GS. */
typedef unsigned long u64;
#define ASM asm volatile

static u64 call(u64 nr, u64 a, u64 b)
{
    u64 r;
    ASM("syscall" : "=a"(r) : "0"(nr), "D"(a), "S"(b) : "rcx", "r11", "memory");
    return r;
}

static void wrong(void) { call(2, 0, 0); }

static void spin(u64 seed)
{
    for (;;) {
        u64 bad;
        ASM("pushq %%rbp\n"
            "leaq 1(%1), %%rcx; leaq 2(%1), %%rdx; leaq 3(%1), %%rsi; leaq 4(%1), %%rdi; leaq 5(%1), %%r8\n"
            "leaq 6(%1), %%r9; leaq 7(%1), %%r10; leaq 8(%1), %%r11; leaq 9(%1), %%r12; leaq 10(%1), %%r13\n"
            "leaq 11(%1), %%r14; leaq 12(%1), %%r15; leaq 13(%1), %%rbp; movl $60000, %%ebx\n"
            "1: movq %%r9, -16(%%rsp); stc; leaq (%%rcx), %%rcx; jnc 2f; cmpq -16(%%rsp), %%r9; jne 2f\n"
            "decl %%ebx; jnz 1b\n"
            "subq $1, %%rcx; subq $2, %%rdx; subq $3, %%rsi; subq $4, %%rdi; subq $5, %%r8; subq $6, %%r9\n"
            "subq $7, %%r10; subq $8, %%r11; subq $9, %%r12; subq $10, %%r13; subq $11, %%r14; subq $12, %%r15\n"
            "cmpq %%rcx, %1; jne 2f; cmpq %%rdx, %1; jne 2f; cmpq %%rsi, %1; jne 2f; cmpq %%rdi, %1; jne 2f\n"
            "cmpq %%r8, %1; jne 2f; cmpq %%r9, %1; jne 2f; cmpq %%r10, %1; jne 2f; cmpq %%r11, %1; jne 2f\n"
            "cmpq %%r12, %1; jne 2f; cmpq %%r13, %1; jne 2f; cmpq %%r14, %1; jne 2f; cmpq %%r15, %1; jne 2f\n"
            "xorl %%ebx, %%ebx; jmp 3f\n"
            "2: movl $1, %%ebx\n3: movq %%rbx, %0; popq %%rbp"
            : "=a"(bad) : "a"(seed)
            : "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory");
        if (bad)
            wrong();
    }
}

static void talk(void)
{
    u64 id = call(0, 0, 0), got;
    for (u64 n = 0;; n++) {
        if (call(0, 0, 0) != id)
            wrong();
        ASM("ud2" : "=a"(got)); /* carried out by the kernel */
        if (got != id)
            wrong();
        ASM("int3");
        if (n % 16 == 0)
            call(1, 0, 0);
        if (n % 50 == 0)
            call(12, n % 100 == 0, 0);
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
        else if (call(3, (u64)p, 0) == ~0ul)
            wrong();
        if (call(3, 0x900000 + n, 0) != ~0ul)
            wrong();
        if (n % 64 == 63)
            call(4, 0, 0);
        for (volatile int i = 0; i < 2000; i++)
            ;
    }
}

/* Runs on the interrupted stack; the kernel's frame is at RSP. */
__attribute__((naked, used)) static void on_signal(void)
{
    ASM("movl $0x11111111, %ebx; movl $0x22222222, %r13d; movl $2000, %ecx\n"
        "1: pushq %rcx; popq %rcx; decl %ecx; jnz 1b\n"
        "rdtsc; testb $0xf0, %al; jnz 2f; movq $0x53, 136(%rsp)\n" /* a CS that cannot be: the kernel's iret faults */
        "2: testb $7, %al; jnz 3f; orl $0x3000, 144(%rsp)\n" /* and an IOPL that must not be */
        "3: movl $7, %eax; syscall; ud2; ud2");
}

static void signalled(void)
{
    call(6, (u64)on_signal, 0);
    for (u64 n = 0;; n++) {
        u64 b = n ^ 0x77777777, c = ~n;
        ASM("movl $200000, %%ecx\n1: decl %%ecx; jnz 1b" : "+b"(b), "+r"(c) :: "rcx", "cc");
        if (b != (n ^ 0x77777777) || c != ~n)
            wrong();
        if (call(8, 3, n) != 0)
            wrong();
    }
}

__attribute__((noreturn)) static void image(u64 n)
{
    for (volatile u64 i = 0; i < n; i++)
        ;
    call(11, 0, 0);
    __builtin_unreachable();
}

static void parent(void)
{
    for (u64 n = 0;; n++) {
        u64 keep = n * 7, child;
        ASM("syscall; testq %%rax, %%rax; jnz 1f\n"
            "movl $10, %%eax; movq %2, %%rdi; movl $5000, %%esi; syscall; ud2\n1:"
            : "=a"(child), "+b"(keep) : "r"(image), "0"(9ul) : "rcx", "rdi", "rsi", "r11", "memory");
        if (keep != n * 7)
            wrong();
        for (volatile int i = 0; i < 20000; i++)
            ;
    }
}

static void own_bases(void)
{
    for (u64 n = 0;; n++) {
        u64 *block = (u64 *)(0x630000 + n % 8 * 64), *seen;
        *block = (u64)block;
        call(5, (u64)block, 0);
        for (int i = 0; i < 100000; i++) {
            ASM("movq %%fs:0, %0" : "=r"(seen));
            if (seen != block)
                wrong();
        }
    }
}

typedef u64 pair __attribute__((vector_size(16)));

static void vectors(void)
{
    pair a = {3, 1}, b = {2, 5};
    for (u64 n = 0;; n++) {
        a += b;
        a ^= (pair){n, n};
        ASM("" : "+x"(a), "+x"(b));
    }
}

__attribute__((section(".text.0"), noreturn)) void begin(u64 which)
{
    switch (which) {
    case 0: spin(0x1111111100);
    case 1: talk();
    case 2: touch();
    case 3: signalled();
    case 4: parent();
    case 5: own_bases();
    }
    vectors();
    for (;;)
        ;
}
