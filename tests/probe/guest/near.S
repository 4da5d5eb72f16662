/*
 * A guest whose handler goes back by popf and ret, in three ways: with all registers; with another one; with RAX, RCX
 * and RDX changed, as any function may return. Ends by isa-debug-exit.
 */
#include "boot.h"

main:   and $-16, %esp
        gate 0x40, handler
        mov $1, %ebx
2:      mov %ebx, %eax
        stc
        int $0x40
        inc %ebx
        cmp $4, %ebx
        jne 2b
        mov $0xf4, %edx
        out %al, %dx
3:      hlt
        jmp 3b

/* The uppermost words of the frame become RFLAGS, RIP. */
        .balign 64
handler:
        push %AX
#if BITS == 64
        mov 3*W(%SP), %AX
        mov %AX, 4*W(%SP)
        mov W(%SP), %AX
        mov %AX, 5*W(%SP)
        pop %AX
        lea 3*W(%SP), %SP
#else
        mov W(%SP), %AX
        xchg %AX, 3*W(%SP)
        mov %AX, 2*W(%SP)
        pop %AX
        lea W(%SP), %SP
#endif
        cmp $2, %ebx
        jb 1f
        inc %esi
        je 1f
        cmp $3, %ebx
        jne 1f
        inc %eax
        inc %ecx
        inc %edx
1:      popf
        ret
