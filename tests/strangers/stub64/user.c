/* Threads that check what they have in registers, and the FS and GS bases that they set themselves, again and again. */
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

/* The bases move: nothing but user code knows. */
static void bases(u64 which)
{
    static u64 words[16][4];
    for (u64 n = 0;; n++) {
        u64 *at = &words[which][n & 3], f, g;
        *at = n;
        ASM("wrfsbase %0" ::"r"(at));
        ASM("wrgsbase %0" ::"r"(at));
        spin(n, 400);
        if (n % 16 == 0)
            call(3, 1, 0);
        ASM("movq %%fs:0, %0; movq %%gs:0, %1" : "=r"(f), "=r"(g));
        if (f != n || g != n)
            wrong();
    }
}

static void talk(u64 which)
{
    for (u64 n = 0;; n++) {
        register u64 r15 asm("r15") = n;
        ASM("" : "+r"(r15));
        if (call(0, 0, 0) != which || call(4, n % 500, 0) != n % 500)
            wrong();
        if (n % 8 == 0)
            ASM("int3");
        if (n % 32 == 0)
            ASM("ud2");
        if (n % 64 == 0)
            call(3, 1, 0);
        ASM("" : "+r"(r15));
        if (r15 != n)
            wrong();
    }
}

__attribute__((section(".text.0"), noreturn)) void begin(u64 which)
{
    for (u64 n = 0;; n++) {
        if (which < 4)
            bases(which);
        else if (which < 7)
            talk(which);
        spin(n * 3, 40000);
        call(n % 2 ? 4 : 3, 2000 * (n % 2) + 1, 0);
    }
}
