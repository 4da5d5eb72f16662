/*
 * The 256 interrupt stubs, 16 bytes each. Every one leaves the same words on the stack, lowest first:
 *
 *      vector, error code (0 if the CPU pushes none)      -- pushed here
 *      RIP, CS, RFLAGS, RSP, SS                           -- pushed by the CPU (ia32: RSP and SS only from user mode)
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
        push $0
        .endif
        .if vector < 128
        push $vector
        .else
        push $vector - 256                     /* keeps the push short; the entry takes the low byte */
        .endif
        jmp interrupt_entry
        .set vector, vector + 1
        .endr
        .balign 16
        .size vector_stubs, . - vector_stubs
