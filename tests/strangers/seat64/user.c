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
