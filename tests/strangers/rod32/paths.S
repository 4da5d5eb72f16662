/* Stubs keep EAX, ECX and EDX; EBX ESI EDI EBP are the compiler's, and the switch's. */
    .text
.macro enter
    pushl %eax
    pushl %ecx
    pushl %edx
    pushl %ds
    pushl %es
    pushl %fs
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
#ifndef BUG_DF
    cld
#endif
.endm
.macro leave_
#ifdef BUG_FS
    movw %ss, %ax
    addl $4, %esp
#else
    popl %fs
#endif
    popl %es
    popl %ds
    popl %edx
    popl %ecx
    popl %eax
.endm
    .globl tick, page, call, illegal, nested
tick:
    enter
#ifdef BUG_TICK_ECX
    movl %eax, 16(%esp)
#endif
    call on_tick
    testb $3, 28(%esp)
    jz 1f
    call before_user
1:  leave_
    iretl
page:
    enter
    movl 24(%esp), %edx     /* code */
    leal 28(%esp), %eax     /* frame */
    call on_page
    leave_
#ifdef BUG_PAGE_CODE
    testb $3, 8(%esp)
    jnz 1f
    iretl
1:
#endif
    addl $4, %esp
    iretl
illegal:
    enter
    leal 24(%esp), %eax
    call on_illegal
    leave_
    iretl
    /* EAX number and result, EBX and ECX arguments. */
call:
    enter
    movl 20(%esp), %eax
    movl %ebx, %edx
    movl 16(%esp), %ecx
    call on_call
    movl %eax, 20(%esp)
    call before_user
#ifdef BUG_CALL_ECX
    movl %ebx, 16(%esp)
#endif
    leave_
    iretl
    /* A device of lower priority: it is acknowledged and interrupts are let in before its work. */
nested:
    pushl %eax
    pushl %ecx
#ifndef BUG_NEST_EDX
    pushl %edx
#endif
    cld
    movb $0x20, %al
    outb %al, $0x20
    sti
    call on_slow
    cli
#ifndef BUG_NEST_EDX
    popl %edx
#endif
    popl %ecx
    popl %eax
    iretl

    /* swtch(u32 *from, u32 to) */
    .globl swtch, first, to_user
swtch:
    pushfl
    pushl %ebp
    pushl %ebx
    pushl %esi
#ifndef BUG_SWITCH_EDI
    pushl %edi
#else
    pushl %esi
#endif
    movl %esp, (%eax)
    movl %edx, %esp
    popl %edi
    popl %esi
    popl %ebx
    popl %ebp
    popfl
    ret
first:
    sti
    movl %ebx, %eax
    call *%esi
    call die
to_user: /* top of the kernel stack, frame built there */
    popl %ds
    popl %es
    popl %fs
    xorl %eax, %eax
    iretl

    /* copy_in(to, from, n) in EAX, EDX, ECX: 0, or 1 after a fault. Its fixup is `copy_failed`. */
    .globl copy_in, copy_at, copy_failed
copy_in:
    pushl %esi
    pushl %edi
    movl %eax, %edi
    movl %edx, %esi
copy_at:
    rep movsb
    xorl %eax, %eax
    jmp 1f
copy_failed:
    movl $1, %eax
1:  popl %edi
    popl %esi
    ret
