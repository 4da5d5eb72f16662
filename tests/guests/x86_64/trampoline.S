/*
 * Where the other CPUs start, in real mode. start_other_cpus copies the 16-bit part to TRAMPOLINE; the
 * rest runs in place.
 */
#include "layout.h"

        .section .rodata
        .globl trampoline_start, trampoline_end
        .code16
trampoline_start:
        cli
        xorw %ax, %ax
        movw %ax, %ds
        lgdtl (TRAMPOLINE + flat_gdtr - trampoline_start)
        movl $0x11, %eax                        /* ET PE */
        movl %eax, %cr0
        ljmpl $0x08, $trampoline32
flat_gdt:
        .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
flat_gdtr:
        .word . - flat_gdt - 1
        .long TRAMPOLINE + flat_gdt - trampoline_start
trampoline_end:

        .section .boot, "ax"
        .code32
        .type trampoline32, @function
trampoline32:
        movl $0x10, %eax
        movl %eax, %ds
        movl %eax, %ss
        movl trampoline_stack - KERNEL_BASE, %esp
        subl $0x80000000, %esp                  /* its physical address */
        call enter_long_mode
        ljmp $KERNEL_CS, $trampoline64
        .size trampoline32, . - trampoline32

        .code64
        .type trampoline64, @function
trampoline64:
        movl $KERNEL_SS, %eax
        movl %eax, %ss
        movq trampoline_stack, %rsp
        movq trampoline_id, %rdi
        xorl %ebp, %ebp
        movq $other_main, %rax
        call *%rax
        ud2
        .size trampoline64, . - trampoline64
