/* Threads with registers that must hold, behind fast calls and slow ones, with a base of their own behind GS. */
typedef unsigned int u32;
#define ASM asm volatile

static __attribute__((noinline)) u32 fast(u32 nr, u32 a)
{
    u32 r;
    ASM("movl $1f, %%edx; movl %%esp, %%ecx; sysenter; 1:" : "=a"(r) : "0"(nr), "b"(a) : "ecx", "edx", "memory");
    return r;
}

static u32 slow(u32 nr, u32 a)
{
    u32 r;
    ASM("int $0x80" : "=a"(r) : "0"(nr), "b"(a) : "memory");
    return r;
}

static void wrong(void) { slow(2, 0); }

static void spin(u32 seed, u32 rounds)
{
    u32 bad;
    ASM("pushl %%ebp; movl %%ebx, %%ebp\n"
        "leal 1(%%eax), %%ebx; leal 2(%%eax), %%ecx; leal 3(%%eax), %%edx; leal 4(%%eax), %%esi; leal 5(%%eax), %%edi; std\n"
        "1: stc; leal (%%ecx), %%ecx; jnc 3f; decl %%ebp; jnz 1b; cld\n"
        "subl $1, %%ebx; subl $2, %%ecx; subl $3, %%edx; subl $4, %%esi; subl $5, %%edi\n"
        "subl %%eax, %%ebx; subl %%eax, %%ecx; subl %%eax, %%edx; subl %%eax, %%esi; subl %%eax, %%edi\n"
        "orl %%ecx, %%ebx; orl %%edx, %%ebx; orl %%esi, %%ebx; orl %%edi, %%ebx; jmp 4f\n"
        "3: cld; movl $1, %%ebx\n4: popl %%ebp; movl %%ebx, %%eax"
        : "=a"(bad), "+b"(rounds) : "0"(seed) : "ecx", "edx", "esi", "edi", "memory", "cc");
    if (bad)
        wrong();
}

static void local(u32 which)
{
    for (u32 n = 0;; n++) {
        u32 mine;
        ASM("movl %%gs:0, %0" : "=r"(mine));
        if (mine != which)
            wrong();
        spin(n, 300);
        if (n % 16 == 0)
            fast(3, 1);
    }
}

static void talk(u32 which)
{
    for (u32 n = 0;; n++) {
        u32 keep = n * 7;
        ASM("" : "+r"(keep));
        if (fast(0, n) != which || slow(0, n) != which)
            wrong();
        fast(n % 5 ? 4 : 5, n);
        if (n % 6 == 0)
            slow(n % 12 ? 1 : 3, 1);
        ASM("" : "+r"(keep));
        if (keep != n * 7)
            wrong();
        if (n % 4 == 0)
            ASM("int3");
        if (n % 9 == 0)
            ASM("ud2");
        spin(n, 500);
    }
}

static void floats(u32 which)
{
    double a = which + 1, x = 0;
    for (u32 n = 0;; n++) {
        x = a;
        for (int i = 0; i < 4000; i++)
            x += a;
        if (x != a * 4001)
            wrong();
        if (n % 8 == 0)
            slow(3, 1);
    }
}

__attribute__((section(".text.0"), naked)) void begin(void) { ASM("pushl %ebx; call threads"); }

__attribute__((used)) static void threads(u32 which)
{
    switch (which) {
    case 0: case 1: local(which); break;
    case 2: case 3: floats(which); break;
    case 4: case 5: talk(which); break;
    default: for (u32 n = 0;; n++) { spin(n * 5, 60000); if (n % 8 == 0) fast(1, 0); }
    }
}
