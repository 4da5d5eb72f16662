/* The program: all run the same one at the same addresses, each in its own segments. Registers, messages, flags, selectors. */
typedef unsigned int u32;
#define ASM asm volatile
struct message { int source, type, a, b; };
enum { SEND = 1, RECEIVE = 2, BOTH = 3, CLOCK = 1, PRINTER = 2, TASKS = 3 };

static int call(u32 what, u32 whom, struct message *m)
{
    int r;
    ASM("int $0x21" : "=a"(r) : "0"(whom), "b"(m), "c"(what) : "memory");
    return r;
}

static void wrong(void)
{
    struct message m = {0, 1, 0, 0};
    call(BOTH, PRINTER, &m);
}

static void spin(u32 seed, u32 rounds)
{
    u32 bad;
    ASM("pushl %%ebp; pushl %%edx; leal 1(%%eax), %%ecx; leal 2(%%eax), %%edx; leal 3(%%eax), %%esi; leal 4(%%eax), %%edi\n"
        "movl %%eax, %%ebp\n"
        "1: stc; leal 1(%%ecx), %%ecx; jnc 2f; leal -1(%%ecx), %%ecx; decl %%ebx; jnz 1b\n"
        "subl $1, %%ecx; subl $2, %%edx; subl $3, %%esi; subl $4, %%edi\n"
        "cmpl %%ecx, %%ebp; jne 2f; cmpl %%edx, %%ebp; jne 2f; cmpl %%esi, %%ebp; jne 2f; cmpl %%edi, %%ebp; jne 2f\n"
        "cmpl %%eax, %%ebp; jne 2f; xorl %%eax, %%eax; jmp 3f\n2: movl $1, %%eax\n3: popl %%edx; popl %%ebp"
        : "=a"(bad), "+b"(rounds) : "0"(seed) : "ecx", "esi", "edi", "memory");
    if (bad)
        wrong();
}

static void back(u32 seed, u32 rounds) /* with DF set */
{
    ASM("std" ::: "cc");
    for (volatile u32 i = 0; i < rounds; i++)
        ASM("" ::"r"(seed));
    ASM("cld" ::: "cc");
}

__asm__(".section .text.0\n.globl start\nstart: pushl %eax\npushl $0\njmp program_main\n.text");

__attribute__((noreturn, used)) void program_main(u32 me)
{
    if (me & 1)
        ASM("movw %w0, %%fs; movw %w0, %%gs" ::"r"(0));
    else
        ASM("movw %%ds, %%ax; movw %%ax, %%fs; movw %%ax, %%gs" ::: "eax");
    struct message m = {0};
    for (u32 n = 0;; n++) {
        spin(n * 8 + me, 8000 + me * 1000);
        if (n % 4 == me)
            ASM("ud2");
        back(n, 300);
        if (n % 4 == 0)
            ASM("hlt");
        if (me < 2 && n % 4 == 0) { /* ask and answer */
            m.a = (int)n;
            if (me == 0)
                call(BOTH, TASKS + 1, &m);
            else {
                call(RECEIVE, 99, &m);
                m.a++;
                spin(n, 100);
                call(SEND, (u32)m.source, &m);
            }
            if (me == 0 && m.a != (int)n + 1)
                wrong();
        }
        m.type = 0;
        m.a = (int)(n % 64);
        if (me > 1)
            call(BOTH, n % 3 ? PRINTER : CLOCK, &m);
    }
}
