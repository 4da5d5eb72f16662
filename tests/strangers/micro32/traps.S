/* A thread's registers are pushed straight into its control block: ESP0 is the end of their place there. */
    .set UPPER, 0xc0000000

    .section .multiboot, "a"
    .long 0x1badb002, 0, -0x1badb002

    .text
    .globl start
start:
    movl $(boot_pd - UPPER), %edi
    movl $0x83, %eax
1:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    cmpl $0x8000083, %eax /* 128 MB */
    jb 1b
    movl $(boot_pd - UPPER + 1), %eax
    movl %eax, boot_pdpt - UPPER
    movl %eax, boot_pdpt - UPPER + 24
    movl %cr4, %eax
    orl $0x620, %eax
    movl %eax, %cr4
    movl $(boot_pdpt - UPPER), %eax
    movl %eax, %cr3
    movl %cr0, %eax
    andl $~4, %eax
    orl $0x80010002, %eax
    movl %eax, %cr0
    movl $kernel_stack_top, %esp
    xorl %ebp, %ebp
    movl $init, %eax
    jmp *%eax

/* Below ss esp eflags cs eip: error number ds es fs gs eax ecx edx ebx esi edi ebp, ebp lowest. */
.macro save
    pushl %ds
    pushl %es
    pushl %fs
#ifdef BUG_GS_SELECTOR
    pushl $0
#else
    pushl %gs
#endif
    pushl %eax
    pushl %ecx
    pushl %edx
    pushl %ebx
    pushl %esi
    pushl %edi
#ifdef BUG_EBP
    pushl %esi
#else
    pushl %ebp
#endif
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
.endm

trap:
    testb $3, 12(%esp) /* CS: only the idle loop is interrupted in the kernel, and it is not kept */
    jz 1f
    save
    movl $kernel_stack_top, %esp
    cld
    movl %esp, %ebp
    jmp on_trap
1:  movl (%esp), %eax
    movl $kernel_stack_top, %esp
    cld
    jmp on_trap_in_idle

    .globl enter
enter: /* sysenter: ECX is the user's ESP, EDX where it goes on; ESP points to the TSS's ESP0 */
    movl (%esp), %esp
    pushl $0x23
    pushl %ecx
    pushfl
    orl $0x200, (%esp)
    pushl $0x1b
    pushl %edx
    pushl $0
    pushl $-1
    pushl $2
    popfl
    save
    movl $kernel_stack_top, %esp
    jmp on_call

/* resume(block): back to user code, by the way it came. */
    .globl resume
resume:
    movl 4(%esp), %esp
    cmpl $-1, 44(%esp)
    je 1f
    popl %ebp
    popl %edi
    popl %esi
    popl %ebx
    popl %edx
    popl %ecx
    popl %eax
    popl %gs
    popl %fs
    popl %es
    popl %ds
    addl $8, %esp
    iretl
1:  popl %ebp
    popl %edi
    popl %esi
#ifdef BUG_CALL_EBX
    addl $4, %esp
#else
    popl %ebx
#endif
    addl $8, %esp
    popl %eax
    popl %gs
    popl %fs
    popl %es
    popl %ds
    addl $8, %esp
    popl %edx
    addl $4, %esp
    andl $~0x200, (%esp)
    popfl
    popl %ecx
    sti
    sysexit

    .globl idle
idle:
    movl $kernel_stack_top, %esp
1:  sti
    hlt
    jmp 1b

.macro vector n, code
    .text
vector\n:
    .if !\code
    pushl $0
    .endif
    pushl $\n
    jmp trap
    .section .rodata
    .long \n, vector\n
.endm
    .section .rodata
    .globl vector_list
vector_list:
    vector 0, 0
    vector 6, 0
    vector 7, 0
    vector 8, 1
    vector 10, 1
    vector 11, 1
    vector 12, 1
    vector 13, 1
    vector 14, 1
    vector 48, 0
    vector 55, 0
    .section .rodata
    .long 0, 0

    .bss
    .balign 4096
    .globl boot_pd, boot_pdpt, kernel_stack_top
boot_pd: .space 4096
    .space 1024
kernel_stack_top:
    .balign 32
boot_pdpt: .space 32
