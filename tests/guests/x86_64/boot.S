/*
 * From QEMU's -kernel to kernel_main. QEMU finds the PVH note and enters pvh_start at its physical
 * address, in 32-bit protected mode without paging.
 */
#include "layout.h"

#define XEN_ELFNOTE_PHYS32_ENTRY 18

        .section .note.pvh, "a", @note
        .balign 4
        .long 4, 8, XEN_ELFNOTE_PHYS32_ENTRY
        .asciz "Xen"
        .quad pvh_start

        .section .boot, "ax"
        .code32
        .globl pvh_start
        .type pvh_start, @function
pvh_start:
        cli
        cld
        movl $(boot_stack_top - KERNEL_BASE), %esp
        /* Page tables are built at run time: 1 GB in 2 MB pages, at 0 and at KERNEL_BASE. */
        movl $(boot_pd - KERNEL_BASE), %edi
        movl $0x83, %eax                        /* present, writable, 2 MB */
1:      movl %eax, (%edi)
        addl $8, %edi
        addl $0x200000, %eax
        cmpl $0x40000083, %eax
        jne 1b
        movl $(boot_pd - KERNEL_BASE + 3), (boot_pdpt_low - KERNEL_BASE)
        movl $(boot_pd - KERNEL_BASE + 3), (boot_pdpt_high - KERNEL_BASE + 8 * 510)
        movl $(boot_pd_lapic - KERNEL_BASE + 3), (boot_pdpt_high - KERNEL_BASE + 8 * 511)
        movl $0xfee00093, (boot_pd_lapic - KERNEL_BASE)      /* present, writable, uncached, 2 MB */
        movl $(boot_pdpt_low - KERNEL_BASE + 3), (boot_pml4 - KERNEL_BASE)
        movl $(boot_pdpt_high - KERNEL_BASE + 3), (boot_pml4 - KERNEL_BASE + 8 * 511)
        call enter_long_mode
        ljmp $KERNEL_CS, $boot64
        .size pvh_start, . - pvh_start

/* Paging, long mode and SSE on; a GDT to go with it. Also for the CPUs that come by the trampoline. */
        .globl enter_long_mode
        .type enter_long_mode, @function
enter_long_mode:
        movl $0x620, %eax                       /* CR4: PAE, OSFXSR, OSXMMEXCPT */
        movl %eax, %cr4
        movl $(boot_pml4 - KERNEL_BASE), %eax
        movl %eax, %cr3
        movl $MSR_EFER, %ecx
        rdmsr
        orl $0x100, %eax                        /* LME */
        wrmsr
        movl $0x80010033, %eax                  /* CR0: PG WP NE ET MP PE */
        movl %eax, %cr0
        lgdt boot_gdtr
        ret
        .size enter_long_mode, . - enter_long_mode

        .code64
        .type boot64, @function
boot64:
        movl $KERNEL_SS, %eax
        movl %eax, %ss
        movq $boot_stack_top, %rsp
        xorl %ebp, %ebp
        movq $kernel_main, %rax
        call *%rax
        ud2
        .size boot64, . - boot64

        .balign 8
boot_gdt:
        .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff
        .globl boot_gdtr
boot_gdtr:
        .word . - boot_gdt - 1
        .long boot_gdt, 0

        .bss
        .balign 4096
        .globl boot_pml4
boot_pml4:      .skip 4096
boot_pdpt_low:  .skip 4096
boot_pdpt_high: .skip 4096
        .globl boot_pd
boot_pd:        .skip 4096
boot_pd_lapic:  .skip 4096
boot_stack:     .skip 4096
boot_stack_top:
