/* Every gate uses one IST stack, in the few pages that both address spaces map; the frame is copied from there. */
    .section .multiboot, "a"
    .long 0x1badb002, 0, -0x1badb002

    .text
    .code32
    .globl start
start:
    movl $boot_pdpt + 3, boot_pml4
    movl $boot_pd + 3, boot_pdpt
    xorl %ecx, %ecx
1:  movl %ecx, %eax
    shll $21, %eax
    orl $0x83, %eax
    movl %eax, boot_pd(, %ecx, 8)
    incl %ecx
    cmpl $64, %ecx
    jne 1b
    movl %cr4, %eax
    orl $0x620, %eax
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    andl $~0xc, %eax
    orl $0x80010022, %eax
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $1f
    .code64
1:  movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl $boot_stack, %esp
    xorl %ebp, %ebp
    call kernel
    ud2

    /* swap(u64 *old_sp, u64 new_sp) */
    .globl swap, first
swap:
    pushfq
#ifdef BUG_SWAP_RBX
    subq $8, %rsp
#else
    pushq %rbx
#endif
    pushq %rbp
    pushq %r15
    pushq %r14
    pushq %r13
    pushq %r12
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r12
    popq %r13
    popq %r14
    popq %r15
    popq %rbp
#ifdef BUG_SWAP_RBX
    addq $8, %rsp
#else
    popq %rbx
#endif
    popfq
    retq

    .section .common_page, "awx"
    .balign 4096
.macro gate n, code
gate\n:
    .if !\code
    pushq $0
    .endif
    pushq $\n
    jmp common
    .pushsection .rodata
    .quad \n, gate\n
    .popsection
.endm
    .section .rodata
    .globl gates
gates:
    .section .common_page
    gate 0, 0
    gate 6, 0
    gate 8, 1
    gate 13, 1
    gate 14, 1
    gate 32, 0
    gate 39, 0
    gate 128, 0
    .section .rodata
    .quad 0, 0

    .section .common_page
common:
#ifdef BUG_IST_REUSED
    sti
    pushq %rcx
    movl $400, %ecx
9:  loop 9b
    popq %rcx
    cli
#endif
    pushq %rax
    pushq %rcx
    pushq %rdx
    movq kernel_cr3(%rip), %rax
    movq %rax, %cr3
    movq thread_stack(%rip), %rdx
    testb $3, 48(%rsp)
    jnz 1f
    movq 64(%rsp), %rdx
    subq $128, %rdx /* kernel code has its red zone, too */
    andq $-16, %rdx
1:  subq $80, %rdx
    .irp at, 0, 8, 16, 24, 32, 40, 48, 56, 64, 72
    movq \at(%rsp), %rax
    movq %rax, \at(%rdx)
    .endr
    movq %rdx, %rsp
    pushq %rbx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
    movq %rsp, %rdi
    movq %rsp, %rbp
    andq $-16, %rsp
    call trap
    movq %rbp, %rsp
first:
    popq %r15
    popq %r14
    popq %r13
    popq %r12
#ifdef BUG_R11
    addq $8, %rsp
#else
    popq %r11
#endif
    popq %r10
    popq %r9
    popq %r8
    popq %rbp
    popq %rdi
    popq %rsi
    popq %rbx
    testb $3, 48(%rsp)
    jz 2f
    leaq exit_stack(%rip), %rdx
    .irp at, 0, 8, 16
    movq \at(%rsp), %rax
    movq %rax, \at-64(%rdx)
    .endr
    .irp at, 40, 48, 56, 64, 72
    movq \at(%rsp), %rax
    movq %rax, \at-80(%rdx)
    .endr
#ifdef BUG_FLAGS
    movq $0x202, -24(%rdx)
#endif
#ifdef BUG_SS
    xorq $0x18, -8(%rdx)
#endif
    leaq -64(%rdx), %rsp
    movq user_cr3(%rip), %rax
    movq %rax, %cr3
    popq %rdx
    popq %rcx
    popq %rax
    iretq
2:  popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    iretq

    .globl kernel_cr3, user_cr3, thread_stack, gdt, idt, tss, ist_stack
    .balign 16
kernel_cr3: .quad boot_pml4
user_cr3: .quad 0
thread_stack: .quad 0
gdt: .quad 0, 0x00209a0000000000, 0x0000920000000000, 0x0020fa0000000000, 0x0000f20000000000, 0, 0, 0x0000f20000000000
gdt_pointer:
    .word 63
    .long gdt, 0
    .balign 16
idt: .space 256 * 16
tss: .space 104
    .balign 16
    .space 2048
ist_stack:
    .space 256
exit_stack:

    .bss
    .balign 4096
    .globl boot_pml4
boot_pml4: .space 4096
boot_pdpt: .space 4096
boot_pd: .space 4096
    .space 8192
boot_stack:
