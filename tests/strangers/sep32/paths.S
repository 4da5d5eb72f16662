/* The save area of who runs is at FS:0, the CPU's stack at FS:4. In an area, in words: eax ebx ecx edx esi edi ebp number
 * error eip cs eflags esp ss fs gs ds es how; the FPU's image is 128 bytes from its beginning. */
    .text
trap:
    testb $3, 12(%esp)
    jz idle_again
    pushl %eax
    pushl %fs
    movl $0x38, %eax
    movw %ax, %fs
    movl %fs:0, %eax
    movl %ebx, 4(%eax)
    movl %ecx, 8(%eax)
#ifdef BUG_SKIP_EDX
    testb $7, 32(%esp)
    jnz 1f
#endif
    movl %edx, 12(%eax)
1:  movl %esi, 16(%eax)
    movl %edi, 20(%eax)
    movl %ebp, 24(%eax)
    popl 56(%eax)
    popl 0(%eax)
    popl 28(%eax)
    popl 32(%eax)
    popl 36(%eax)
    popl 40(%eax)
#ifdef BUG_FLAGS
    addl $4, %esp
#else
    popl 44(%eax)
#endif
    popl 48(%eax)
    popl 52(%eax)
    movw %gs, 60(%eax)
    movw %ds, 64(%eax)
    movw %es, 68(%eax)
#ifndef BUG_SYSEXIT
    movl $0, 72(%eax)
#endif
#ifndef BUG_FXSAVE
    fxsave 128(%eax)
#endif
into_c:
    movl $0x10, %ecx
    movw %cx, %ds
    movw %cx, %es
    movl %fs:4, %esp
    movl 28(%eax), %ecx
    pushl %ecx
#ifndef BUG_DF
    cld
#endif
    xorl %ebp, %ebp
    call on_trap
idle_again:         /* nobody to save */
    popl %ecx
    movl %fs:4, %esp
    pushl %ecx
    cld
    call on_trap

    .globl fast
fast:               /* ESP is the TSS: ECX is the caller's ESP, EDX where it goes on */
    movl 4(%esp), %esp
    pushl %fs
    pushfl
    movl $0x38, %eax        /* EAX: the call is in EBP's place of the caller, see user code */
    movw %ax, %fs
    movl %fs:0, %eax
    popl 44(%eax)
    orl $0x200, 44(%eax)
    popl 56(%eax)
    movl %ebx, 4(%eax)
    movl %esi, 16(%eax)
    movl %edi, 20(%eax)
#ifndef BUG_CALL_EBP
    movl %ebp, 24(%eax)
#endif
    movl %ecx, 48(%eax)
    movl %edx, 36(%eax)
    movl $0x1b, 40(%eax)
    movl $0x23, 52(%eax)
    movw %gs, 60(%eax)
    movw %ds, 64(%eax)
    movw %es, 68(%eax)
    movl $1, 72(%eax)
    movl $128, 28(%eax)
    fxsave 128(%eax)
    jmp into_c

    .globl resume
resume:             /* EAX: the area */
    fxrstor 128(%eax)
    movw 60(%eax), %gs
    movl 4(%eax), %ebx
#ifdef BUG_ESI_EDI
    movl 20(%eax), %esi
    movl 16(%eax), %edi
#else
    movl 16(%eax), %esi
    movl 20(%eax), %edi
#endif
    movl 24(%eax), %ebp
    cmpl $0, 72(%eax)
    jne 1f
    movl 8(%eax), %ecx
    movl 12(%eax), %edx
    pushl 52(%eax)
    pushl 48(%eax)
    pushl 44(%eax)
    pushl 40(%eax)
    pushl 36(%eax)
    pushl 64(%eax)
    pushl 68(%eax)
    pushl 56(%eax)
    movl 0(%eax), %eax
    popl %fs
    popl %es
    popl %ds
    iretl
1:  movl 36(%eax), %edx
    movl 48(%eax), %ecx
    pushl 44(%eax)
    andl $~0x200, (%esp)
    pushl 64(%eax)
    pushl 68(%eax)
    pushl 56(%eax)
    movl 0(%eax), %eax
    popl %fs
    popl %es
    popl %ds
    popfl
#ifndef BUG_IF
    sti
#endif
    sysexit

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
    vector 3, 0
    vector 6, 0
    vector 13, 1
    vector 48, 0
    .section .rodata
    .long 39, ignore, 0, 0
    .text
ignore: iretl
