/*
 * A guest whose handler goes back by a far return, in five ways: behind popf; with a pop in between; without flags; with
 * another register; behind an iret to the far return, as if that had been interrupted. In front of that, a far return that resumes nobody. Ends by isa-debug-exit.
 */
#include "boot.h"
#if BITS == 64
#define FAR_RETURN lretq
#else
#define FAR_RETURN lret
#endif

main:   and $-16, %esp
        gate 0x40, handler
        push $CODE_SELECTOR
        push $1f
        FAR_RETURN
1:      mov $1, %ebx
2:      mov %ebx, %eax
        stc
        int $0x40
        inc %ebx
        cmp $6, %ebx
        jne 2b
        mov $0xf4, %edx
        out %al, %dx
3:      hlt
        jmp 3b

/* What lies upwards becomes RFLAGS, DX, RIP, CS: that is all of a frame that was pushed in 32-bit code, and a word more. */
        .balign 64
handler:
        push %DX
        push %AX
        mov 2*W(%SP), %AX
#if BITS == 64
        mov %AX, 5*W(%SP)
        mov 3*W(%SP), %AX
        mov %AX, 6*W(%SP)
        mov 4*W(%SP), %AX
        mov %DX, 4*W(%SP)
        mov %AX, 3*W(%SP)
        pop %AX
        lea 2*W(%SP), %SP
#else
        xchg %AX, 3*W(%SP)
        xchg %AX, 4*W(%SP)
        mov %DX, 2*W(%SP)
        mov %AX, W(%SP)
        pop %AX
#endif
        cmp $2, %ebx
        je 2f
        cmp $3, %ebx
        je 3f
        cmp $5, %ebx
        je 5f
        cmp $4, %ebx
        jne 1f
        inc %esi
1:      mov (%SP), %DX /* RFLAGS take the place of DX */
        xchg %DX, W(%SP)
        lea W(%SP), %SP
        popf
        FAR_RETURN
2:      popf
        pop %DX
        FAR_RETURN
3:      lea 2*W(%SP), %SP
        FAR_RETURN
5:      mov %AX, kept
        mov W(%SP), %DX
        mov %DX, kept + W
        pop kept + 2*W
        lea W(%SP), %SP
#if BITS == 64
        mov %SP, %AX
        mov %ss, %edx
        push %DX
        push %AX
#endif
        push kept + 2*W
        push $CODE_SELECTOR
        push $6f
        mov kept, %AX
        mov kept + W, %DX
        IRET
        hlt
6:      FAR_RETURN

        .bss
        .balign 8
kept:   .space 3*W
