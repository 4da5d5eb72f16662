/* Four tasks of user code; the one in virtual-8086 mode is in gates.S. */
typedef unsigned int u32;

static u32 call(u32 nr, u32 a)
{
    u32 r;
    asm volatile("int $0x80" : "=a"(r) : "0"(nr), "b"(a) : "memory");
    return r;
}

static void spin(u32 seed);
static void talk(u32 me);
static void sixteen(void);
static void floats(void);

__attribute__((section(".text.0"), naked)) void begin(void)
{
    asm volatile("pushl %ebx; call main");
}

__attribute__((noreturn)) void main(u32 n)
{
    if (n == 0)
        spin(0x12345678);
    if (n == 1)
        talk(n);
    if (n == 2)
        sixteen();
    floats();
    for (;;)
        ;
}

static void spin(u32 seed)
{
    for (;;) {
        u32 bad;
        asm volatile("pushl %%ebp\n"
                     "leal 1(%%eax), %%ebx; leal 2(%%eax), %%ecx; leal 3(%%eax), %%edx\n"
                     "leal 4(%%eax), %%esi; leal 5(%%eax), %%edi; movl $300000, %%ebp\n"
                     "std\n"
                     "1: stc; jnc 3f; cmpl %%eax, %%eax; jne 3f; addl $1, %%ecx; subl $1, %%ecx\n"
                     "decl %%ebp; jnz 1b; cld\n"
                     "subl $5, %%edi; subl $4, %%esi; subl $3, %%edx; subl $2, %%ecx; decl %%ebx\n"
                     "subl %%eax, %%edi; subl %%eax, %%esi; subl %%eax, %%edx; subl %%eax, %%ecx; subl %%eax, %%ebx\n"
                     "orl %%edi, %%ebx; orl %%esi, %%ebx; orl %%edx, %%ebx; orl %%ecx, %%ebx; jmp 4f\n"
                     "3: cld; movl $1, %%ebx\n"
                     "4: popl %%ebp; movl %%ebx, %%eax"
                     : "=a"(bad) : "0"(seed) : "ebx", "ecx", "edx", "esi", "edi", "memory", "cc");
        if (bad)
            call(2, 0);
    }
}

/* Thread-local data behind FS, in a descriptor of the task's own table. */
static void talk(u32 me)
{
    static u32 blocks[4][4];
    double sum = 0.25;
    for (u32 n = 0;; n++) {
        u32 *block = blocks[n % 4], seen;
        *block = (u32)block ^ me;
        call(3, (u32)block);
        asm volatile("movw %w0, %%fs" ::"r"(0x0f));
        call(n % 8 == 0 ? 1 : 9, n);
        for (volatile int i = 0; i < 3000; i++)
            ;
        asm volatile("movl %%fs:0, %0" : "=r"(seen));
        sum += 1;
        asm volatile("" : "+x"(sum));
        if (seen != ((u32)block ^ me) || sum < 0.25)
            call(2, 0);
    }
}

/* 16-bit code, and a 16-bit stack under it half of the time. */
__attribute__((naked)) static void small(void)
{
    asm volatile(".code16\n"
                 "movw $20000, %cx\n"
                 "1: decw %cx; jnz 1b\n"
                 "movw %ss, %bx; movl %esp, %edi\n"
                 "movw $0x1f, %ax; movw %ax, %ss; movl $0x8000, %esp\n"
                 "movw $20000, %cx\n"
                 "2: pushw %cx; popw %cx; decw %cx; jnz 2b\n"
                 "movw %bx, %ss; movl %edi, %esp\n"
                 "lretl\n"
                 ".code32");
}

static void sixteen(void)
{
    struct { u32 offset; unsigned short selector; } __attribute__((packed)) to = {(u32)small - 0x40000000, 0x17};
    for (u32 n = 0;; n++) {
        u32 mark = n * 5;
        asm volatile("lcall *%1" : "+S"(mark) : "m"(to) : "eax", "ebx", "ecx", "edi", "memory", "cc");
        if (mark != n * 5)
            call(2, 0);
        call(9, n);
    }
}

static void floats(void)
{
    double x = 3, y = 1;
    for (;;) {
        x += 0.5;
        y += 0.5;
        asm volatile("" : "+x"(x), "+x"(y));
        if (x - y != 2.0)
            call(2, 0);
        if (x > 1e6) {
            x = 3;
            y = 1;
        }
    }
}
