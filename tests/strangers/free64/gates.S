/* The kernel runs where its memory is, processes in the upper half; GS is the CPU's own, for good, in user code too. */
    .section .note.pvh, "a", @note
    .long 4, 4, 18
    .asciz "Xen"
    .long pvh_entry

    .text
    .code32
    .globl pvh_entry
pvh_entry:
    movl $boot_pdpt + 3, boot_pml4
    movl $boot_pd + 3, boot_pdpt
    xorl %ecx, %ecx
1:  movl %ecx, %eax
    shll $21, %eax
    orl $0x83, %eax
    movl %eax, boot_pd(, %ecx, 8)
    incl %ecx
    cmpl $512, %ecx
    jne 1b
    movl $boot_stack, %esp
    movl $kernel, %edi
to_long_mode:
    movl %cr4, %eax
    orl $0x620, %eax
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x101, %eax
    wrmsr
    movl %cr0, %eax
    andl $~0xc, %eax
    orl $0x80010022, %eax
    movl %eax, %cr0
    lgdt boot_gdt_ptr
    ljmp $8, $1f
    .code64
1:  movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %ebp, %ebp
    movl %edi, %eax
    movl number_of_next, %edi
    call *%rax
    ud2

    .balign 8
boot_gdt: .quad 0, 0x00209a0000000000, 0x0000920000000000, 0x00cf9a000000ffff, 0x00cf92000000ffff
boot_gdt_ptr:
    .word 39
    .long boot_gdt

    /* Copied to 8000h: where the other CPUs start. */
    .code16
    .globl ap_start, ap_end
ap_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl 0x8000 + 3f - ap_start
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x18, $0x8000 + 2f - ap_start
    .code32
2:  movl $0x20, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl stack_of_next, %esp
    movl $other_cpu, %edi
    movl $to_long_mode, %eax
    jmp *%eax
    .balign 4
3:  .word 39
    .long boot_gdt
ap_end:
    .code64

    /* long context_save(struct context *): 0, and once more 1, when somebody resumes it. */
    .globl context_save, context_resume
context_save:
    movq (%rsp), %rdx
    movq %rbx, (%rdi)
    movq %rbp, 8(%rdi)
    movq %r12, 16(%rdi)
    movq %r13, 24(%rdi)
#ifndef BUG_RESUME_R14
    movq %r14, 32(%rdi)
#endif
    movq %r15, 40(%rdi)
    leaq 8(%rsp), %rcx
    movq %rcx, 48(%rdi)
    movq %rdx, 56(%rdi)
    xorl %eax, %eax
    retq
context_resume:
    movq (%rdi), %rbx
    movq 8(%rdi), %rbp
    movq 16(%rdi), %r12
    movq 24(%rdi), %r13
    movq 32(%rdi), %r14
    movq 40(%rdi), %r15
    movl $1, %eax
    movq 48(%rdi), %rsp
    jmp *56(%rdi)

.macro save_all
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %rbx
    pushq %r15
    pushq %r14
    pushq %r13
    pushq %r12
.endm
.macro load_all
    popq %r12
    popq %r13
    popq %r14
    popq %r15
    popq %rbx
    popq %rbp
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rax
    popq %r11
    popq %r10
    popq %r9
    popq %r8
.endm

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
    .text
    gate 0, 0
    gate 3, 0
    gate 6, 0
    gate 8, 1
    gate 10, 1
    gate 11, 1
    gate 12, 1
    gate 13, 1
    gate 14, 1
    gate 64, 0
    gate 65, 0
    gate 255, 0
    .section .rodata
    .quad 0, 0

    .text
common:
    save_all
    cld
    movq %rsp, %rdi
    call trap
    .globl leave
leave:
    load_all
#ifdef BUG_IRQ_R10
    movl $64, %r10d
#endif
#ifdef BUG_PAGE_CODE
    cmpq $14, (%rsp)
    jne 1f
    addq $8, %rsp
    iretq
1:
#endif
    addq $16, %rsp
    iretq

    .globl syscall_gate
syscall_gate:
    movq %rsp, %gs:16
    movq %gs:8, %rsp
    pushq $0x1b
    pushq %gs:16
    pushq %r11
    pushq $0x23
    pushq %rcx
    pushq $0
    pushq $256
    save_all
    movq %rsp, %rdi
    call call
    testl %eax, %eax
    jnz leave
    load_all
    addq $16, %rsp
    movq (%rsp), %rcx
#ifdef BUG_CALL_RDX
    movq %gs:0, %rdx
#endif
    movq 16(%rsp), %r11
    movq 24(%rsp), %rsp
    sysretq

    /* The watchdog's, on a stack of its own: it may come anywhere. */
    .globl nmi_gate
nmi_gate:
    pushq %rax
    pushq %rdx
    cld
    movq %gs:0, %rdx
    movq nmis(, %rdx, 8), %rax
    incq %rax
    movq %rax, nmis(, %rdx, 8)
#ifdef BUG_NMI_RDX
    addq $8, %rsp
#else
    popq %rdx
#endif
    popq %rax
    iretq

    /* u64 peek(u64 address, u64 *value): -1 if there is nothing. */
    .globl peek
peek:
1:  movq (%rdi), %rax
    movq %rax, (%rsi)
    xorl %eax, %eax
    retq
2:  movq $-1, %rax
    retq
    .section .fixups, "a"
    .long 1b - pvh_entry, 2b - pvh_entry

    .data
    .globl stack_of_next, number_of_next, nmis
    .balign 8
stack_of_next: .quad 0
number_of_next: .quad 0
nmis: .quad 0, 0, 0, 0

    .bss
    .balign 4096
    .globl boot_pml4
boot_pml4: .space 4096
boot_pdpt: .space 4096
boot_pd: .space 4096
    .space 8192
boot_stack:
