/* One program, eight threads: what each does follows from its number. */
typedef unsigned int u32;

static u32 call(u32 what, u32 word)
{
    u32 r;
    asm volatile("pushl %%ebp; movl %%esp, %%ecx; movl $1f, %%edx; sysenter; 1: popl %%ebp"
                 : "=a"(r) : "a"(what), "b"(word) : "ecx", "edx", "memory");
    return r;
}

static void client(u32);
static void server(void);
static void spin(u32);
static void toucher(void);
static void floats(u32);
static void flags(void);
static void sleeper(void);

__attribute__((section(".text.0"), regparm(1), noreturn)) void begin(u32 n)
{
    static u32 words[2][4];
    words[n & 1][0] = n;
    call(4, (u32)words[n & 1]);
    if (n == 0)
        client(n);
    if (n == 1 || n == 4)
        floats(n);
    if (n == 2)
        server();
    if (n == 3)
        toucher();
    if (n == 5)
        spin(n * 0x01010100);
    if (n == 6)
        flags();
    sleeper();
    for (;;)
        ;
}

static u32 own(void) { u32 n; asm volatile("movl %%gs:0, %0" : "=r"(n)); return n; }

static void client(u32 me)
{
    for (u32 n = 0;; n++) {
        if (call(1, n) != n + 1 || own() != me)
            call(5, 0);
        for (volatile int i = 0; i < 3000; i++)
            ;
    }
}

static void server(void)
{
    u32 word = call(2, 0);
    for (;;)
        word = call(2, word + 1);
}

static void toucher(void)
{
    for (u32 n = 0;; n++) {
        *(volatile u32 *)(0x20000 + n % 16 * 4096) = n;
        for (volatile int i = 0; i < 4000; i++)
            ;
    }
}

static void spin(u32 seed)
{
    for (;;) {
        u32 bad;
        asm volatile("pushl %%ebp\n"
                     "leal 1(%1), %%ebx; leal 2(%1), %%ecx; leal 3(%1), %%edx; leal 4(%1), %%esi; leal 5(%1), %%edi\n"
                     "movl $200000, %%ebp\n"
                     "1: stc; leal (%%edx), %%edx; jnc 2f; decl %%ebp; jnz 1b\n"
                     "xorl %%ebp, %%ebp; subl $1, %%ebx; subl $2, %%ecx; subl $3, %%edx; subl $4, %%esi; subl $5, %%edi\n"
                     "xorl %1, %%ebx; xorl %1, %%ecx; xorl %1, %%edx; xorl %1, %%esi; xorl %1, %%edi\n"
                     "orl %%edi, %%ebx; orl %%esi, %%ebx; orl %%edx, %%ebx; orl %%ecx, %%ebx; jmp 3f\n"
                     "2: movl $1, %%ebx\n3: popl %%ebp; movl %%ebx, %0"
                     : "=a"(bad) : "a"(seed) : "ebx", "ecx", "edx", "esi", "edi", "memory");
        if (bad || own() != 5)
            call(5, 0);
    }
}

static void floats(u32 me)
{
    double x = me, y = 1;
    for (u32 n = 0;; n++) {
        x += 0.5;
        y += 0.5;
        asm volatile("" : "+x"(x), "+x"(y));
        if (x - y != me - 1.0)
            call(5, 0);
        if (x > 1e6)
            x -= y - 1, y = 1, x = me;
    }
}

/* System calls with the direction flag, the carry and NT set. */
static void flags(void)
{
    for (;;) {
        u32 f;
        asm volatile("pushl %%ebp; pushfl; orl $0x4401, (%%esp); popfl; movl %%esp, %%ecx; movl $1f, %%edx; movl $9, %%eax\n"
                     "sysenter; 1: pushfl; popl %%ebx; pushfl; andl $~0x4400, (%%esp); popfl; popl %%ebp"
                     : "=b"(f) :: "eax", "ecx", "edx", "memory");
        if ((f & 0x4401) != 0x4401)
            call(5, 0);
        for (volatile int i = 0; i < 2500; i++)
            ;
        call(0, 0);
    }
}

static void sleeper(void)
{
    for (;;) {
        call(3, 0);
        for (volatile int i = 0; i < 500; i++)
            ;
    }
}
