/* From the PVH entry, and from the start-up IPI of the other CPUs, to 64-bit code in the upper half. */
#define UPPER 0xffffffff80000000
#define PHYS(x) ((x) - UPPER)

    .section .note.pvh, "a", @note
    .long 4, 4, 18
    .asciz "Xen"
    .long PHYS(pvh_entry)

    .section .boot, "ax"
    .code32
    .globl pvh_entry
pvh_entry:
    movl $PHYS(upper_pdpt), %eax
    orl $3, %eax
    movl %eax, PHYS(boot_pml4) + 511 * 8
    movl $PHYS(lower_pdpt), %eax
    orl $3, %eax
    movl %eax, PHYS(boot_pml4)
    movl $PHYS(first_pd), %eax
    orl $3, %eax
    movl %eax, PHYS(upper_pdpt) + 510 * 8
    movl %eax, PHYS(lower_pdpt)
    xorl %ecx, %ecx
1:  movl %ecx, %eax
    shll $21, %eax
    orl $0x83, %eax
    movl %eax, PHYS(first_pd)(, %ecx, 8)
    incl %ecx
    cmpl $512, %ecx
    jne 1b
    movl $PHYS(boot_stack_top), %esp
    movl $PHYS(first_cpu), %edi
    jmp to_long_mode

/* EDI: where to go on, physical. */
to_long_mode:
    movl %cr4, %eax
    orl $0x620, %eax /* PAE, OSFXSR, OSXMMEXCPT */
    movl %eax, %cr4
    movl $PHYS(boot_pml4), %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x101, %eax /* SCE, LME */
    wrmsr
    movl %cr0, %eax
    andl $~0xc, %eax
    orl $0x80010022, %eax
    movl %eax, %cr0
    lgdt PHYS(boot_gdt_ptr)
    ljmp $8, $PHYS(1f)
    .code64
1:  movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movq $UPPER, %rax
    addq %rdi, %rax
    jmp *%rax

first_cpu:
    movq $boot_stack_top, %rsp
    xorl %edi, %edi
    xorl %ebp, %ebp
    call rust_main
    ud2

other_cpu:
    movq ap_stack(%rip), %rsp
    xorl %ebp, %ebp
    movq ap_number(%rip), %rdi
    call ap_main
    ud2

    .balign 8
boot_gdt:
    .quad 0, 0x00209a0000000000, 0x0000920000000000, 0x00cf9a000000ffff, 0x00cf92000000ffff
boot_gdt_ptr:
    .word 39
    .long PHYS(boot_gdt)

/* Copied to 8000h. */
    .code16
    .globl ap_start, ap_start_end
ap_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl 0x8000 + ap_gdt_ptr - ap_start
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x18, $0x8000 + ap_32 - ap_start
    .code32
ap_32:
    movl $0x20, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $PHYS(other_cpu), %edi
    movl $PHYS(to_long_mode), %eax
    jmp *%eax
    .balign 4
ap_gdt_ptr:
    .word 39
    .long PHYS(boot_gdt)
ap_start_end:

    .data
    .globl ap_stack, ap_number
    .balign 8
ap_stack: .quad 0
ap_number: .quad 0

    .bss
    .balign 4096
    .globl boot_pml4, first_pd
boot_pml4: .space 4096
lower_pdpt: .space 4096
upper_pdpt: .space 4096
first_pd: .space 4096
    .space 8192
boot_stack_top:
