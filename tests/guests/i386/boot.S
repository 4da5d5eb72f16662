/*
 * From QEMU's -kernel to kernel_main. QEMU finds the multiboot header and enters `start` at its physical
 * address, in protected mode with flat segments, without paging.
 */
#include "layout.h"

#define MULTIBOOT_MAGIC 0x1badb002

        .section .boot, "ax"
        .balign 4
        .long MULTIBOOT_MAGIC, 0, -MULTIBOOT_MAGIC      /* magic, flags, checksum */

        .globl start
        .type start, @function
start:
        cli
        cld
        /* 256 MB in 4 MB pages, at 0 and at KERNEL_BASE; the local APIC. */
        movl $(boot_pd - KERNEL_BASE), %edi
        movl $0x83, %eax                        /* present, writable, 4 MB */
1:      movl %eax, (%edi)
        movl %eax, 4 * (KERNEL_BASE >> 22)(%edi)
        addl $4, %edi
        addl $0x400000, %eax
        cmpl $0x10000083, %eax
        jne 1b
        movl $((LAPIC_BASE & 0xffc00000) | 0x93), (boot_pd - KERNEL_BASE + 4 * (LAPIC_BASE >> 22))     /* uncached */
        movl $0x610, %eax                       /* CR4: PSE, OSFXSR, OSXMMEXCPT */
        movl %eax, %cr4
        movl $(boot_pd - KERNEL_BASE), %eax
        movl %eax, %cr3
        movl $0x80010033, %eax                  /* CR0: PG WP NE ET MP PE */
        movl %eax, %cr0
        lgdt boot_gdtr
        ljmp $KERNEL_CS, $boot_high
        .size start, . - start

        .text
        .type boot_high, @function
boot_high:
        movl $KERNEL_SS, %eax
        movl %eax, %ss
        movl %eax, %ds
        movl %eax, %es
        movl $boot_stack_top, %esp
        xorl %ebp, %ebp
        call kernel_main
        ud2
        .size boot_high, . - boot_high

        .data   /* not read-only: the CPU marks descriptors as accessed. QEMU wants no empty segment here, either. */
        .balign 8
boot_gdt:
        .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
boot_gdtr:
        .word . - boot_gdt - 1
        .long boot_gdt

        .bss
        .balign 4096
        .globl boot_pd
boot_pd:        .skip 4096
boot_stack:     .skip 4096
boot_stack_top:
