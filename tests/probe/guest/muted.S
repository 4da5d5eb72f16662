/*
 * A guest that raises vector 6, and then waits for an NMI. Its user code raises vector 6, too, and each fourth time the
 * handler makes the gate lead to the next one. In the end it comes to the kernel through a call gate, twice: first that runs
 * the last handler as ordinary code, and raises vector 6 with the one before; then it makes the gate lead to the last, by
 * instructions that have all run before, and raises vector 6 at once. Ends at another NMI by isa-debug-exit. With DIES, user
 * code spoils the kernel's stack pointer first, and the CPU resets.
 */
#include "boot.h"

#define HANDLERS 8
#define BLOCKS 6000 /* of code: QEMU's log is begun somewhere in them at the latest */
#define CALL_GATE (gdt_end - gdt + 3)

main:   mov $gdt, %esi
        mov $wider, %edi
        mov $(gdt_end - gdt) / 4, %ecx
        cld
        rep movsl
        mov $leap, %eax
        mov %ax, (%edi)
        movw $CODE_SELECTOR, 2(%edi)
        movw $0xec00, 4(%edi)
        shr $16, %eax
        mov %ax, 6(%edi)
        lgdt wider_pointer
        gate 6, handlers
        gate 2, on_nmi
        .rept BLOCKS
        jmp . + 2
        .endr
        mov $1, %esi
        ud2
1:      cmpl $0, told
        je 1b
        push $USER_DATA
        push $stack_top - 4096
        pushf
        push $USER_CODE
        push $user
        IRET

run_at_ax:
        run *%AX
        ret

        .macro to_kernel
#if BITS == 64
        lcall *call_gate
#else
        lcall $CALL_GATE, $0
#endif
        .endm

user:
#ifdef DIES
        movl $0, tss + 4
        movl $0, tss + 8
#endif
1:      ud2
        cmpl $HANDLERS - 1, next
        jne 1b
        movl $elsewhere, where
2:      to_kernel
        movl $HANDLERS - 1, next
        movl $idt + (6 << GATE_SHIFT), where
        jmp 2b

leap:   mov $DATA_SELECTOR, %eax /* as in handlers, so that no block is translated twice */
        mov %eax, %ss
        call install
        ud2
        cmpl $elsewhere, where
        jne 4f
        mov order + 4 * (HANDLERS - 1), %eax
        xor %esi, %esi /* nothing was raised */
        call run_at_ax
        inc %esi
#if BITS == 64
        lretq
#else
        lret
#endif
4:      cmpl $1, told
        je 4b
        mov $0xf4, %edx
        out %al, %dx
3:      hlt
        jmp 3b

install:
        push %AX
        push %BX
        mov next, %eax
        mov order(,%eax,4), %eax
        mov where, %ebx
        mov %ax, (%BX)
        incl next
        pop %BX
        pop %AX
        ret

on_nmi: incl told
        IRET

        .balign 64
handlers:
        .rept HANDLERS
        .balign 64
        test %esi, %esi
        jnz raised
        IRET
        .endr

raised: inc %ebp /* who changes nothing but the frame has stores looked at */
#if BITS == 64
        addq $2, (%rsp)
#else
        addl $2, (%esp)
#endif
        decl left
        jnz 5f
        call install
        movl $4, left
5:      IRET

        .data
        .balign 4096
elsewhere:
        .long 0, 0
where:  .long idt + (6 << GATE_SHIFT)
next:   .long 1
left:   .long 5
told:   .long 0
call_gate:
        .long 0
        .word CALL_GATE
        .balign 8
wider_pointer:
        .word wider_end - wider - 1
        .quad wider
order:
        .set n, 0
        .rept HANDLERS
        .long handlers + 64 * n
        .set n, n + 1
        .endr
        .bss
        .balign 16
wider:  .skip 128
wider_end:
        .text
