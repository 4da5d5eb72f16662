/*
 * A guest whose memory is mapped twice: its handler runs as ordinary code where it was linked, and as a handler in the
 * other place; so does another one, which became a handler first. Ends by isa-debug-exit.
 */
#include "boot.h"

        .set OTHER, 0x40000000

/* As `run` does, and the handler knows that it was not raised. */
        .macro run_as_code handler
        xor %esi, %esi /* nothing was raised */
        run \handler
        inc %esi
        .endm

main:   movl $table2 + 7, table3 + 8
        mov %cr3, %rax
        mov %rax, %cr3
        gate 4, second + OTHER
        run_as_code first
        gate 6, first + OTHER
        xor %edi, %edi
1:      ud2
        run_as_code first
        run_as_code second
        ud2
        int $4
        inc %edi
        cmp $10, %edi
        jne 1b
        mov $0xf4, %edx
        out %al, %dx
2:      hlt
        jmp 2b

        .balign 64
first:  test %esi, %esi
        jz 3f
        addq $2, (%rsp)
3:      IRET
        .balign 64
second: mov $1, %esi
        IRET
