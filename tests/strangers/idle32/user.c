/* A thread a process; most of them wait, so that the idle thread runs. */
typedef unsigned int u32;

static u32 call(u32 nr, u32 a)
{
    u32 r;
    asm volatile("int $0x80" : "=a"(r) : "0"(nr), "b"(a) : "ecx", "edx", "memory");
    return r;
}

static void spin(u32 seed, u32 rounds)
{
    u32 bad;
    asm volatile("pushl %%ebp\n"
                 "leal 1(%%eax), %%ebx; leal 2(%%eax), %%ecx; leal 3(%%eax), %%edx\n"
                 "leal 4(%%eax), %%esi; leal 5(%%eax), %%ebp\n"
                 "1: stc; jnc 3f; addl $1, %%ecx; subl $1, %%ecx\n"
                 "decl %%edi; jnz 1b\n"
                 "subl $5, %%ebp; subl $4, %%esi; subl $3, %%edx; subl $2, %%ecx; decl %%ebx\n"
                 "subl %%eax, %%ebp; subl %%eax, %%esi; subl %%eax, %%edx; subl %%eax, %%ecx; subl %%eax, %%ebx\n"
                 "orl %%ebp, %%ebx; orl %%esi, %%ebx; orl %%edx, %%ebx; orl %%ecx, %%ebx; jmp 4f\n"
                 "3: movl $1, %%ebx\n"
                 "4: popl %%ebp; movl %%ebx, %%eax"
                 : "=a"(bad), "+D"(rounds) : "0"(seed) : "ebx", "ecx", "edx", "esi", "memory", "cc");
    if (bad)
        call(2, 0);
}

__attribute__((noreturn, used)) static void run(u32 n)
{
    static u32 local[4];
    u32 seen;
    for (u32 i = 0;; i++) {
        u32 keep = i * 9;
        switch (n) {
        case 0: spin(0x1234567, 8000); call(1, 2); break;
        case 1:
            local[i % 4] = ~i;
            call(5, (u32)&local[i % 4]);
            spin(i, 60000); /* long enough for a tick to come */
            asm volatile("movl %%gs:0, %0" : "=r"(seen));
            if (seen != ~i)
                call(2, 0);
            call(1, 2);
            break;
        case 2: spin(n, 3000); call(3, 3); asm volatile("" : "+D"(keep)); call(1, 1); break;
        case 3: if (!call(4, 0)) call(2, 0); spin(i, 500); break;
        case 4: *(volatile u32 *)0x50000000 = i; call(6, 0); spin(i, 500); asm volatile("hlt"); break;
        default: spin(i ^ 0x55, 15000); asm volatile("hlt" : "+D"(keep)); break;
        }
        if (keep != i * 9)
            call(2, 0);
    }
}

__attribute__((section(".text.0"), naked)) void begin(void)
{
    asm volatile("pushl %ebx; call run");
}
