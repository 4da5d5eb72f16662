/* XMM (YMM) registers full while a loop runs. */

#ifdef __x86_64__
#define EACH(do) do(0) do(1) do(2) do(3) do(4) do(5) do(6) do(7) do(8) do(9) do(10) do(11) do(12) do(13) do(14) do(15)
#define IN %rdi
#define OUT %rsi
#define PROLOGUE mov %rdx, %rcx
#else
#define EACH(do) do(0) do(1) do(2) do(3) do(4) do(5) do(6) do(7)
#define IN %eax
#define OUT %edx
#define PROLOGUE mov 4(%esp), %eax; mov 8(%esp), %edx; mov 12(%esp), %ecx
#endif

#define LOAD_XMM(n) movdqu n*32(IN), %xmm##n;
#define STORE_XMM(n) movdqu %xmm##n, n*32(OUT);
#define LOAD_YMM(n) vmovdqu n*32(IN), %ymm##n;
#define STORE_YMM(n) vmovdqu %ymm##n, n*32(OUT);
#define CLEAR_XMM(n) pxor %xmm##n, %xmm##n;

    .text
/* void simd_run(const void *in, void *out, long count): 32 bytes for each register */
    .globl simd_run
    .type simd_run, @function
simd_run:
    PROLOGUE
    EACH(LOAD_XMM)
1:  loop 1b
    EACH(STORE_XMM)
    ret

/* The same, with the upper halves. */
    .globl simd_run_avx
    .type simd_run_avx, @function
simd_run_avx:
    PROLOGUE
    EACH(LOAD_YMM)
1:  loop 1b
    EACH(STORE_YMM)
    vzeroupper
    ret

/* void simd_clear(void) */
    .globl simd_clear
    .type simd_clear, @function
simd_clear:
    EACH(CLEAR_XMM)
    ret

    .section .note.GNU-stack, "", @progbits
