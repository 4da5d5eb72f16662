/* Where the CPU goes by vectors 0 to 127, 16 bytes each: to `trap`, behind an error code, if need be 0, and the vector. */
.macro GATES from, to
    .if \to - \from > 1
    GATES \from, (\from + \to) / 2
    GATES (\from + \to) / 2, \to
    .else
    .balign 16
    .if !(\from == 8 || (\from >= 10 && \from < 15) || \from == 17)
    pushq $0
    .endif
    pushq $\from
    jmp trap
    .endif
.endm
    .globl gates
    .balign 16
gates:
    GATES 0, 128
