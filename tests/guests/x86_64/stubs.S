/*
 * The 256 interrupt stubs, 16 bytes each. Every one leaves the same words on the stack:
 *
 *      0(%rsp) vector   8 error code (0 if the CPU pushes none)
 *     16 RIP   24 CS   32 RFLAGS   40 RSP   48 SS      -- pushed by the CPU
 */
#include "layout.h"

        .text
        .balign 16
        .globl vector_stubs
        .type vector_stubs, @function
vector_stubs:
        .set vector, 0
        .rept 256
        .balign 16
        /* Exceptions with an error code (SDM vol. 3, table 6-1): 8, 10-14, 17, 21, 29, 30. */
        .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
        pushq $0
        .endif
        .if vector < 128
        pushq $vector
        .else
        pushq $vector - 256                     /* keeps the push short; the entry takes the low byte */
        .endif
        jmp interrupt_entry
        .set vector, vector + 1
        .endr
        .balign 16
        .size vector_stubs, . - vector_stubs
