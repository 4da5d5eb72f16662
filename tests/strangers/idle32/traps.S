/* A thread's registers lie in its control block, where the CPU pushes its frame; the idle thread, too, has no stack but
 * its block. Calls by int 80h have a way of their own, which saves what their ABI keeps and no more. */
    .section .multiboot, "a"
    .long 0x1badb002, 0, -0x1badb002

    .text
    .globl start
start:
    movl $stack_top, %esp
    xorl %ebp, %ebp
    call kernel
    hlt

    /* Upwards: edi esi edx ecx ebx eax ebp fs gs es ds number error eip cs eflags esp ss */
trap:
    pushl %ds
    pushl %es
    pushl %gs
    pushl %fs
    pushl %ebp
    pushl %eax
#ifdef BUG_STUB_EBX
    pushl %eax
#else
    pushl %ebx
#endif
    pushl %ecx
    pushl %edx
    pushl %esi
    pushl %edi
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movl 44(%esp), %eax
    movl $stack_top, %esp
    pushl %eax
    cld
    call on_trap

    .globl call_gate
call_gate:
    pushl $0
    pushl $128
    subl $16, %esp      /* no selectors: they stay loaded */
    pushl %ebp
    pushl %eax
    pushl %ebx
    subl $8, %esp
    pushl %esi
#ifdef BUG_CALL_EDI
    subl $4, %esp
#else
    pushl %edi
#endif
    movl $stack_top, %esp
    pushl %edx
    pushl %ecx
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    cld
    call on_call

    /* resume(block), resume_call(block): EAX is the result, ECX and EDX are not kept. */
    .globl resume, resume_call
resume:
    movl 4(%esp), %esp
    popl %edi
    popl %esi
    popl %edx
    popl %ecx
    popl %ebx
    popl %eax
    popl %ebp
    popl %fs
    popl %gs
    popl %es
    popl %ds
    addl $8, %esp
#ifdef BUG_FLAGS
    testl $3, 4(%esp)
    jz 1f
    movl $0x202, 8(%esp)
1:
#endif
    iretl
resume_call:
    movl 4(%esp), %esp
    movw $0x23, %cx
    movw %cx, %ds
    movw %cx, %es
    popl %edi
    popl %esi
    addl $8, %esp
    popl %ebx
    popl %eax
    popl %ebp
    xorl %ecx, %ecx
    xorl %edx, %edx
    addl $24, %esp
    iretl

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
    .globl vectors
vectors:
    vector 0, 0
    vector 6, 0
    vector 13, 1
    vector 14, 1
    vector 32, 0
    vector 33, 0
    vector 39, 0
    .section .rodata
    .long 128, call_gate, 0, 0

    .bss
    .balign 16
    .space 4096
stack_top:
