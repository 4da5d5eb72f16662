/* Every register full, then one operation, then every register looked at. */

    .text

#ifdef __x86_64__

/* void regs_run(const struct regs *in (rdi), struct regs *out (rsi), void (*op)(void) (rdx)) */
    .globl regs_run
    .type regs_run, @function
regs_run:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    push %rsi
    push %rdx
    pushq 15*8(%rdi)
    popfq
    mov 0*8(%rdi), %rax
    mov 1*8(%rdi), %rbx
    mov 2*8(%rdi), %rcx
    mov 3*8(%rdi), %rdx
    mov 4*8(%rdi), %rsi
    mov 6*8(%rdi), %rbp
    mov 7*8(%rdi), %r8
    mov 8*8(%rdi), %r9
    mov 9*8(%rdi), %r10
    mov 10*8(%rdi), %r11
    mov 11*8(%rdi), %r12
    mov 12*8(%rdi), %r13
    mov 13*8(%rdi), %r14
    mov 14*8(%rdi), %r15
    mov 5*8(%rdi), %rdi
    call *(%rsp)
    mov %rdi, (%rsp) /* op's place: it is not needed again */
    mov 8(%rsp), %rdi
    mov %rax, 0*8(%rdi)
    mov %rbx, 1*8(%rdi)
    mov %rcx, 2*8(%rdi)
    mov %rdx, 3*8(%rdi)
    mov %rsi, 4*8(%rdi)
    mov %rbp, 6*8(%rdi)
    mov %r8, 7*8(%rdi)
    mov %r9, 8*8(%rdi)
    mov %r10, 9*8(%rdi)
    mov %r11, 10*8(%rdi)
    mov %r12, 11*8(%rdi)
    mov %r13, 12*8(%rdi)
    mov %r14, 13*8(%rdi)
    mov %r15, 14*8(%rdi)
    pushfq
    popq 15*8(%rdi)
    popq 5*8(%rdi)
    add $8, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    cld
    ret
    .size regs_run, . - regs_run

#define NATIVE_CALL syscall

#else

/* void regs_run(const struct regs *in, struct regs *out, void (*op)(void)) */
    .globl regs_run
    .type regs_run, @function
regs_run:
    push %ebp
    push %ebx
    push %esi
    push %edi
    mov 20(%esp), %edi /* in */
    pushl 24(%esp)     /* out */
    pushl 32(%esp)     /* op */
    pushl 7*4(%edi)
    popfl
    mov 0*4(%edi), %eax
    mov 1*4(%edi), %ebx
    mov 2*4(%edi), %ecx
    mov 3*4(%edi), %edx
    mov 4*4(%edi), %esi
    mov 6*4(%edi), %ebp
    mov 5*4(%edi), %edi
    call *(%esp)
    mov %edi, (%esp)
    mov 4(%esp), %edi
    mov %eax, 0*4(%edi)
    mov %ebx, 1*4(%edi)
    mov %ecx, 2*4(%edi)
    mov %edx, 3*4(%edi)
    mov %esi, 4*4(%edi)
    mov %ebp, 6*4(%edi)
    pushfl
    popl 7*4(%edi)
    popl 5*4(%edi)
    add $4, %esp
    pop %edi
    pop %esi
    pop %ebx
    pop %ebp
    cld
    ret
    .size regs_run, . - regs_run

#define NATIVE_CALL call *native_call

    .data
    .globl native_call
native_call: /* __kernel_vsyscall of the vDSO, once main() has found it */
    .long op_int80
    .text

#endif

#define OP(name) .globl name; .type name, @function; name

OP(op_spin):
1:  loop 1b
OP(op_spin_end):
    ret
OP(op_syscall):
    NATIVE_CALL
    ret
OP(op_int80):
    int $0x80
    ret
OP(op_int3):
    int3
    ret
OP(op_icebp):
    .byte 0xf1
    ret
OP(op_ud2):
    ud2
    ret
OP(op_hlt):
    hlt
    ret
OP(op_divide):
    div %ecx
    ret

OP(op_rseq): /* the restartable section: from here to op_rseq_end */
1:  loop 1b
    .globl op_rseq_end
op_rseq_end:
    ret
    .long 0x53053053 /* RSEQ_SIG: the kernel goes nowhere without it */
    .globl op_rseq_abort
op_rseq_abort:
    ret

    .section .note.GNU-stack, "", @progbits
