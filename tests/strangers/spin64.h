/* Included where u64, ASM and wrong() are: every register holds, and the flags, for a while. */
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
