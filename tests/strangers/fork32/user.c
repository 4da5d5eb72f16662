/* One program: what a process does follows from EAX, the number it was forked or executed with. */
typedef unsigned int u32;
#define ASM __asm__ volatile

static u32 call(u32 nr, u32 a, u32 b)
{
    u32 r;
    ASM("int $128" : "=a"(r) : "0"(nr), "b"(a), "c"(b) : "memory");
    return r;
}

static u32 far_call(u32 nr)
{
    u32 r;
    ASM("lcall $0x3b, $0" : "=a"(r) : "0"(nr) : "memory");
    return r;
}

static void wrong(void) { call(10, 0, 0); }

static void spin(u32 seed, u32 rounds)
{
    u32 bad;
    ASM("pushl %%ebp\n"
        "movl %%ebx, %%ebp; leal 1(%%eax), %%ebx; leal 2(%%eax), %%ecx; leal 3(%%eax), %%edx; leal 4(%%eax), %%esi\n"
        "leal 5(%%eax), %%edi; std\n"
        "1: stc; leal (%%ecx), %%ecx; jnc 2f; decl %%ebp; jnz 1b; cld\n"
        "subl $1, %%ebx; subl $2, %%ecx; subl $3, %%edx; subl $4, %%esi; subl $5, %%edi\n"
        "cmpl %%ebx, %%eax; jne 2f; cmpl %%ecx, %%eax; jne 2f; cmpl %%edx, %%eax; jne 2f; cmpl %%esi, %%eax; jne 2f\n"
        "cmpl %%edi, %%eax; jne 2f; xorl %%eax, %%eax; jmp 3f\n"
        "2: movl $1, %%eax\n3: cld; popl %%ebp"
        : "=a"(bad), "+b"(rounds) : "0"(seed) : "ecx", "edx", "esi", "edi", "memory");
    if (bad)
        wrong();
}

static volatile u32 heap[24][1024], alarms;

static void talk(u32 n)
{
    u32 pid = call(3, 0, 0), b = n, c = ~n, d = n * 3, s = n * 5, i = n * 7, r = 3;
    ASM("int $128" : "+a"(r), "+b"(b), "+c"(c), "+d"(d), "+S"(s), "+D"(i) :: "memory");
    if (r != pid || b != n || c != ~n || d != n * 3 || s != n * 5 || i != n * 7 || far_call(3) != pid)
        wrong();
    heap[0][5] = n;
    if (call(11, (u32)heap[0], 0) != n)
        wrong();
    if (n % 8 == 0)
        ASM("int3");
    if (n % 16 == 0)
        ASM("cli");
    if (n % 32 == 0)
        call(4, 1, 0);
}

static void forker(u32 n)
{
    for (u32 i = 0; i < 24; i++)
        heap[i][n % 1024] = n + i;
    u32 s = n, i = ~n, r = 0;
    ASM("int $128" : "+a"(r), "+S"(s), "+D"(i) :: "memory");
    if (s != n || i != ~n)
        wrong();
    if (!r) {
        for (u32 k = 0; k < 24; k++) {
            if (heap[k][n % 1024] != n + k)
                wrong();
            heap[k][n % 1024] = 0;
        }
        spin(n, 2000);
        if (n % 4 == 0)
            call(8, 99, 0);
        call(1, 0, 0);
    }
    if (call(2, 0, 0) != r)
        wrong();
    for (u32 k = 0; k < 24; k++)
        if (heap[k][n % 1024] != n + k)
            wrong();
}

static void ring(void) { alarms++; }

__attribute__((naked)) static void restorer(void) { ASM("movl $7, %eax; int $128"); }

static void alarmed(u32 n)
{
    u32 before = alarms;
    call(6, 1 + n % 3, 0);
    if (n % 4 == 0)
        call(4, 50, 0);
    while (alarms == before)
        spin(n, 3000);
}

static void floats(u32 n)
{
    double x = n, y = 1;
    for (u32 i = 0; i < 20000; i++) {
        x += 0.5;
        y += 0.5;
        ASM("" : "+x"(x), "+x"(y));
    }
    if (x - y != n - 1.0)
        wrong();
}

static void local(u32 n)
{
    static u32 block[4];
    u32 *at = &block[n % 4], seen;
    *at = n;
    call(9, (u32)at, 0);
    spin(n, 200000);
    ASM("movl %%gs:0, %0" : "=r"(seen));
    if (seen != n)
        wrong();
}

__attribute__((used, noreturn)) static void run(u32 which)
{
    if (which == 99)
        call(1, 0, 0);
    for (u32 n = 1; !which && n < 9; n++)
        if (!call(0, 0, 0))
            which = n;
    if (which == 4)
        call(5, (u32)ring, (u32)restorer);
    for (u32 n = 1;; n++)
        switch (which) {
        case 1: spin(n, 100000); break;
        case 2: talk(n); break;
        case 3: case 8: forker(n); break;
        case 4: alarmed(n); break;
        case 5: case 6: floats(n * which); break;
        case 7: local(n); break;
        default: call(2, 0, 0);
        }
}

__attribute__((section(".text.0"), naked, noreturn)) void begin(void) { ASM("pushl %eax; call run"); }
