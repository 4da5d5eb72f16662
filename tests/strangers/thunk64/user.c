/* Threads of the three processes; what each does follows from its number. */
typedef unsigned long u64;
#define ASM asm volatile

static u64 call(u64 nr, u64 a, u64 b)
{
    u64 r;
    ASM("syscall" : "=a"(r) : "0"(nr), "D"(a), "S"(b) : "rcx", "r11", "memory");
    return r;
}

static void wrong(void) { call(2, 0, 0); }

#include "../spin64.h"

static void pause(u64 n)
{
    for (; n; n--)
        ASM("" : "+r"(n));
}

/* A call with every register known. */
static void call_all(u64 nr, u64 seed)
{
    u64 bad;
    ASM("pushq %%rbp\n"
        "leaq 2(%%rbx), %%rdx; leaq 3(%%rbx), %%rsi; leaq 4(%%rbx), %%rdi; leaq 5(%%rbx), %%r8; leaq 6(%%rbx), %%r9\n"
        "leaq 7(%%rbx), %%r10; leaq 9(%%rbx), %%r12; leaq 10(%%rbx), %%r13; leaq 11(%%rbx), %%r14; leaq 12(%%rbx), %%r15\n"
        "leaq 13(%%rbx), %%rbp; syscall; subq $2, %%rdx; subq $3, %%rsi; subq $4, %%rdi; subq $5, %%r8; subq $6, %%r9\n"
        "subq $7, %%r10; subq $9, %%r12; subq $10, %%r13; subq $11, %%r14; subq $12, %%r15; subq $13, %%rbp\n"
        "cmpq %%rdx, %%rbx; jne 2f; cmpq %%rsi, %%rbx; jne 2f; cmpq %%rdi, %%rbx; jne 2f; cmpq %%r8, %%rbx; jne 2f\n"
        "cmpq %%r9, %%rbx; jne 2f; cmpq %%r10, %%rbx; jne 2f; cmpq %%r12, %%rbx; jne 2f; cmpq %%r13, %%rbx; jne 2f\n"
        "cmpq %%r14, %%rbx; jne 2f; cmpq %%r15, %%rbx; jne 2f; cmpq %%rbp, %%rbx; jne 2f; xorl %%eax, %%eax; jmp 3f\n"
        "2: movl $1, %%eax\n3: popq %%rbp"
        : "=a"(bad), "+b"(seed) : "0"(nr)
        : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
    if (bad)
        wrong();
}

static void talk(u64 n)
{
    u64 got;
    call_all(n % 8 == 0, n << 32);
    ASM("ud2" : "=a"(got)); /* carried out by the kernel */
    if (got != call(0, 0, 0))
        wrong();
    ASM("int3");
    if (n % 16 == 0) /* steps, one of them into a system call */
        ASM("pushfq; orq $0x100, (%%rsp); popfq; movl $0, %%eax; syscall; leaq (%%rax), %%rax; pushfq; andq $~0x100, (%%rsp); popfq"
            ::: "rax", "rcx", "r11", "memory", "cc");
    if (n % 50 == 0)
        call(11, n % 3 ? n % 150 ? 2 : 8 : 0, 0);
    pause(2000);
}

static void touch(u64 n)
{
    volatile u64 *p = (u64 *)(0x800000 + (n % 15) * 4096 + 0xff8);
    if (n % 3)
        *p = n;
    else
        call(3, (u64)p, 0);
    if (call(3, 0x900000 + n, 0) != ~0ul)
        wrong();
    if (n % 64 == 63)
        call(4, 0, 0);
    spin(n, 700);
}

/* At RSP is the frame that the kernel took: RIP at 128, CS 136, flags 144. */
__attribute__((naked, used)) static void on_signal(void)
{
    ASM("movl $0x11111111, %ebx; movl $0x22222222, %r13d; pxor %xmm0, %xmm0; pcmpeqd %xmm1, %xmm1; movl $2000, %ecx\n"
        "1: pushq %rcx; popq %rcx; decl %ecx; jnz 1b\n"
        "rdtsc; shrl $4, %eax; testb $31, %al; jnz 2f; movq $0x53, 136(%rsp)\n"     /* a CS that is none */
        "2: testb $15, %ah; jnz 3f; btsq $47, 128(%rsp); btsq $63, 128(%rsp)\n"     /* an address that is none */
        "3: testb $7, %al; jnz 4f; orl $0x3000, 144(%rsp)\n"                        /* an IOPL that must not be */
        "4: movl $7, %eax; syscall; ud2; ud2");
}

typedef u64 pair __attribute__((vector_size(16)));

static void signalled(u64 n)
{
    pair a = {n, 1}, b = {2, n}, c = a;
    if (!n)
        call(6, (u64)on_signal, 0);
    for (int i = 0; i < 20000; i++)
        ASM("paddq %1, %0; psubq %1, %0" : "+x"(a), "+x"(b));
    if (a[0] != c[0] || a[1] != c[1])
        wrong();
    spin(n, 30000);
    if (call(8, 2, n) != 0)
        wrong();
}

/* FS and GS are the thread's own to write. */
static void bases(u64 n, u64 id)
{
    u64 *at = (u64 *)(0x630000 + id * 0x400 + n % 4 * 64), f, g;
    at[0] = n ^ id << 32;
    if (n % 4 == 3)
        call(5, (u64)at, 0);
    else
        ASM("wrfsbase %0" ::"r"(at));
    ASM("wrgsbase %0" ::"r"(at));
    spin(n, 60000);
    ASM("movq %%fs:0, %0; movq %%gs:0, %1" : "=r"(f), "=r"(g));
    if (f != at[0] || g != at[0])
        wrong();
}

static void vectors(u64 n)
{
    pair a = {n, 1}, b = {2, n}, c = a;
    for (int i = 0; i < 20000; i++)
        ASM("paddq %1, %0; psubq %1, %0" : "+x"(a), "+x"(b));
    if (a[0] != c[0] || a[1] != c[1])
        wrong();
    if (n % 8 == 0)
        call(1, 0, 0);
}

static void travel(u64 n, u64 id)
{
    if (call(12, n % 3, 0) != n % 3)
        (void)0; /* moved on meanwhile */
    spin(n * id, 5000);
    if (n % 4 == 0)
        call(8, 1, 0);
}

/* A thread that has a child, which lives for a moment on a stack that the parent has chosen. */
static void parent(u64 n, u64 id)
{
    u64 keep = n * 7, child;
    ASM("syscall; testq %%rax, %%rax; jnz 1f\n"
        "movl $3000, %%ecx; 2: decl %%ecx; jnz 2b; movl $10, %%eax; syscall; ud2; ud2\n1:"
        : "=a"(child), "+b"(keep) : "0"(9ul), "D"(0x640000 + id * 0x8000 + n % 4096 * 8) : "rcx", "r11", "memory", "cc");
    if (keep != n * 7)
        wrong();
    pause(60000);
}

__attribute__((section(".text.0"), noreturn)) void begin(u64 which, u64 id)
{
    for (u64 n = 0;; n++)
        switch (which) {
        case 0: parent(n, id); break;
        case 1: talk(n); break;
        case 2: touch(n); break;
        case 3: signalled(n); break;
        case 4: bases(n, id); break;
        case 5: travel(n, id); break;
        default: vectors(n);
        }
}
