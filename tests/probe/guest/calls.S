/*
 * A guest whose entries are overtaken before their first instruction: user code single-steps into `sysenter` and
 * `syscall` (neither clears TF by itself), entry points fault where they begin or lie in a page that is not there yet,
 * NMIs come at any time, also where a handler is about to begin. Exceptions are handled by the code that raised them.
 * Ends by isa-debug-exit with the number of the last step.
 *
 * Its 64-bit code needs a CPU that takes `sysenter` there: an Intel one.
 */
#include "boot.h"

#define ROUNDS 5000
#define ALIAS 0x3fe00000 /* 64-bit code: the first 2 MiB once more, once #PF has mapped them */

/* #DB comes behind the next instruction. */
        .macro step
        pushf
        orl $0x100, (%SP)
        popf
        .endm

/* Say where `sysexit` is to go on. */
        .macro come_back_to label
        mov $\label, %edx
        mov %esp, %ecx
        .endm

        .macro to_user label
        mov $user_top, %eax
        push $USER_DATA
        push %AX
        push $2
        push $USER_CODE
        push $\label
        IRET
        .endm

main:
        gate 1, debug
        gate 6, mend
        gate 0x80, nothing
        gate 0x81, end_broken
        gate 0x83, recurse
        gate 0x84, finish
        write_msr 0x174, CODE_SELECTOR
        write_msr 0x175, stack_top
        write_msr 0x176, entered
#if BITS == 64
        gate 14, map
        gate 0x43, nothing + ALIAS
        gate 0x82, unmap
        movl $0, table2 + 511 * 8
        write_msr 0xc0000081, 0, 0x1b0008 /* STAR: user code gets USER_DATA and USER_CODE */
        write_msr 0xc0000082, called
        write_msr 0xc0000084, 0 /* FMASK: keeps TF */
#endif
        to_user user

user:
        /* 1: #DB comes before the first instruction of the entry */
        come_back_to 1f
        step
        sysenter
1:
#if BITS == 64
        step
        syscall
#endif
        /* 2: `int` clears TF, which comes back with the user code */
        step
        int $0x80
        nop
        /* 3: an instruction that raises an exception which is none of its own doing */
        .byte 0xf1 /* int1 */
        /* 4: the first instruction faults, and is mended */
        int $0x81
        come_back_to 1f
        sysenter
1:
#if BITS == 64
        int $0x81
        syscall
        /* 5: it is not there, and is mapped */
        int $0x82
        syscall
        int $0x82
        int $0x43
#endif
        int $0x83
        /* 8: NMIs */
user_again:
        mov $ROUNDS, %edi
8:      come_back_to 1f
        sysenter
1:      int $0x80
#if BITS == 64
        syscall
#endif
        dec %edi
        jnz 8b
        int $0x84

        /* Entry points and handlers. Each begins a block of its own. */
        .balign 16
entered:
        nop
        SYSEXIT
        .balign 16
broken: ud2
        SYSEXIT
        .balign 16
nothing:
        nop
        IRET
        .balign 16
debug:  andl $~0x100, 2 * W(%SP)
        IRET
        .balign 16
mend:   push %AX
        mov W(%SP), %AX
        movw $0x9090, (%AX)
        pop %AX
        IRET
        .balign 16
end_broken: /* the entries of system calls shall be such that fault; ECX is saved by user code */
        write_msr 0x176, broken
#if BITS == 64
        write_msr 0xc0000082, broken_call
#endif
        IRET
#if BITS == 64
        .balign 16
called: nop
        sysretq
        .balign 16
broken_call:
        ud2
        sysretq
        .balign 16
unmap:  movl $0, table2 + 511 * 8
        invlpg ALIAS
        write_msr 0xc0000082, called + ALIAS
        IRET
        .balign 16
map:    movl $0x87, table2 + 511 * 8
        add $8, %rsp
        IRET
#endif
        .balign 16
recurse:
        mov $stack_top, %esp
        /* 6: an exception handled by the block that raised it: run, and entered twice */
        gate 13, own
        xor %esi, %esi
        jmp own
        .balign 16
own:    inc %esi
        mov own_selectors(,%esi,4), %eax
        mov %eax, %fs
        jmp own_end
        .balign 16
own_end:
        /* 7: the same, thrice from the start: frame and words are the same each time */
        gate 13, again
        mov $3, %ebp
        .balign 16
8:      mov $stack_top, %esp
        xor %esi, %esi
        jmp again
        .balign 16
again:  inc %esi
        mov again_selectors(,%esi,4), %eax
        mov %eax, %fs
        dec %ebp
        jnz 8b
        /* The timer's interrupts, at 9 kHz, come as NMIs through LINT0. */
        gate 2, nmi
        write_msr 0x176, entered
#if BITS == 64
        write_msr 0xc0000082, called
#endif
        mov $0xfee00350, %eax
        movl $0x400, (%AX)
        .irp pair, 0x1120, 0x2021, 0x0421, 0x0121, 0xfe21, 0x3443, 0x8040, 0x0040
        mov $(\pair >> 8), %al
        out %al, $(\pair & 0xff)
        .endr
        to_user user_again
        .balign 16
finish: mov $8, %eax
        out %al, $0xf4
        hlt
        .balign 16
nmi:    push %AX
        mov $0x0c, %al /* ask the controller, in place of its vector (8259A: poll command), and end it */
        out %al, $0x20
        in $0x20, %al
        mov $0x20, %al
        out %al, $0x20
        pop %AX
        IRET

        .data
own_selectors:
        .long 0, 0xfff0, 0xfff0, 0
again_selectors:
        .long 0, 0xfff0, 0
        .bss
        .balign 16
        .skip 256
user_top:
