/*
 * A 64-bit guest whose interrupt table has a limit that reaches behind the last page that is mapped, in turn with a whole
 * one; then it goes on at a second address of all its memory, loads its tables from there and unmaps the first. Ends by
 * isa-debug-exit.
 */
#include "boot.h"

#define PAGE 0x200000
#define HIGH 0xc0000000
#define PARTIAL (3 * PAGE - 0x800) /* the first 128 gates; behind them nothing is mapped */

        .macro reload_cr3
        mov %cr3, %rax
        mov %rax, %cr3
        .endm

/* Let the pointer at \to tell where \table lies, seen from here. */
        .macro locate table, to
        lea \table(%rip), %rax
        mov %rax, \to + 2(%rip)
        .endm

main:
        movl $0, table2 + 3 * 8
        movl $table2 + 7, table3 + 24
        reload_cr3
        gate 3, trap
        gate 6, skip
        mov $idt, %esi
        mov $PARTIAL, %edi
        mov $512, %ecx
        cld
        rep movsl
        lidt partial_pointer
        int3
        ud2
        ud2
        lidt idt_pointer
        int3
        ud2
        lidt partial_pointer
        ud2
        movabs $high + HIGH, %rax
        jmp *%rax
high:   mov $HIGH, %edx
        add %rdx, %rsp
        locate gdt, gdt_pointer
        locate idt, idt_pointer
        lgdt gdt_pointer(%rip)
        lidt idt_pointer(%rip)
        lea trap(%rip), %rax
        mov %ax, idt + 3 * 16(%rip)
        shr $16, %rax
        mov %ax, idt + 3 * 16 + 6(%rip)
        lea skip(%rip), %rax
        mov %ax, idt + 6 * 16(%rip)
        shr $16, %rax
        mov %ax, idt + 6 * 16 + 6(%rip)
        movq $0, table3(%rip)
        reload_cr3
        ud2
        ud2
        int3
        mov $0xf4, %edx
        out %al, %dx
1:      hlt
        jmp 1b

        .balign 64
trap:   nop
        IRET
        .balign 64
skip:   addq $2, (%rsp)
        IRET

        .data
        .balign 8
partial_pointer:
        .word 0xfff
        .quad PARTIAL
        .text
