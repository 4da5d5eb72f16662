/* Holds values in all registers, DF and CF for `rounds`; true if one was lost. */
static __attribute__((noinline)) u32 spin(u32 seed, u32 rounds)
{
    u32 bad;
    asm volatile("pushl %%ebp; movl %%ebx, %%ebp\n"
        "leal 1(%%eax), %%ebx; leal 2(%%eax), %%ecx; leal 3(%%eax), %%edx; leal 4(%%eax), %%esi; leal 5(%%eax), %%edi; std\n"
        "1: stc; leal (%%ecx), %%ecx; jnc 3f; decl %%ebp; jnz 1b; cld\n"
        "subl $1, %%ebx; subl $2, %%ecx; subl $3, %%edx; subl $4, %%esi; subl $5, %%edi\n"
        "subl %%eax, %%ebx; subl %%eax, %%ecx; subl %%eax, %%edx; subl %%eax, %%esi; subl %%eax, %%edi\n"
        "orl %%ecx, %%ebx; orl %%edx, %%ebx; orl %%esi, %%ebx; orl %%edi, %%ebx; jmp 4f\n"
        "3: cld; movl $1, %%ebx\n4: popl %%ebp; movl %%ebx, %%eax"
        : "=a"(bad), "+b"(rounds) : "0"(seed) : "ecx", "edx", "esi", "edi", "memory", "cc");
    return bad;
}
