/* What the processes do: every one is forked from the first. */
#include "teach.h"

static inline int call(int nr, uint arg)
{
    int r;
    asm volatile("int $64" : "=a"(r) : "a"(nr), "b"(arg) : "memory");
    return r;
}

static int main(void);

__attribute__((section(".text.start"), naked)) void start(void)
{
    asm volatile("call *%0; 1: jmp 1b" ::"r"(main));
}

static void complain(void)
{
    static int said;
    if (!said++)
        call(SYS_puts, (uint)"CORRUPT\n");
}

/* Registers that must hold, flags that move, the direction flag set now and then. */
static void spin(uint seed)
{
    for (;;) {
        uint bad;
        asm volatile("pushl %%ebp\n"
                     "movl %1, %%eax; leal 1(%%eax), %%ebx; leal 2(%%eax), %%ecx; leal 3(%%eax), %%edx\n"
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
            complain();
    }
}

static void talk(void)
{
    int pid = call(SYS_getpid, 0);
    for (uint n = 0;; n++) {
        if (call(SYS_getpid, n) != pid)
            complain();
        if (n % 5 == 0)
            call(SYS_yield, 0);
        if (n % 7 == 0)
            call(SYS_sleep, 1);
        call(SYS_uptime, n);
        for (volatile int i = 0; i < 2000; i++)
            ;
    }
}

static void touch(void)
{
    volatile uint *heap = (uint *)0x400000;
    for (uint n = 1;; n++) {
        heap[(n * 7 % 64) * 1024] = n;
        for (volatile int i = 0; i < 3000; i++)
            ;
    }
}

/* Thread-local storage behind FS, another base in each process. */
static uint tls_block[2][4];

static void local(int which)
{
    uint *mine = tls_block[which];
    mine[0] = (uint)mine;
    call(SYS_settls, (uint)mine);
    asm volatile("movw %w0, %%fs" ::"r"(SEG_UTLS << 3 | 3));
    for (;;) {
        uint *got;
        asm volatile("movl %%fs:0, %0" : "=r"(got));
        if (got != mine)
            complain();
    }
}

static void families(void)
{
    for (;;) {
        if (call(SYS_fork, 0) == 0) {
            for (volatile int i = 0; i < 40000; i++)
                ;
            call(SYS_exit, 0);
        }
        call(SYS_wait, 0);
        call(SYS_sleep, 3);
    }
}

static int main(void)
{
    if (call(SYS_fork, 0) == 0)
        spin(0x12340000);
    if (call(SYS_fork, 0) == 0)
        talk();
    if (call(SYS_fork, 0) == 0)
        touch();
    if (call(SYS_fork, 0) == 0)
        local(0);
    if (call(SYS_fork, 0) == 0)
        local(1);
    if (call(SYS_fork, 0) == 0)
        families();
    call(SYS_sleep, 10000);
    call(SYS_over, 0);
    for (;;)
        call(SYS_sleep, 100);
}
