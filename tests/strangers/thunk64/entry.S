/* Entries of today: a trampoline stack for each CPU, two page tables for each process, GS read and written by name. All
 * of this is in both page tables; C is not. */
#define SCRATCH %gs:8
#define TOP %gs:16
#define TRAMPOLINE %gs:32
#define FRAME %gs:40
#define USERS_TABLE 0x1000 /* this bit of CR3 */
#define NUMBER_SELECTOR 0x78
#define RET jmp __x86_return_thunk

.macro THUNK reg
    .balign 32
    .globl __x86_indirect_thunk_\reg
__x86_indirect_thunk_\reg:
    call 2f
1:  pause
    lfence
    jmp 1b
2:  movq %\reg, (%rsp)
    retq
    int3
.endm
    .section .text.thunks, "ax"
    .irp reg, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
    THUNK \reg
    .endr

    .section .entry.text, "ax"
    .balign 64
    .globl __x86_return_thunk
__x86_return_thunk:
    call 2f
1:  pause
    lfence
    jmp 1b
2:  leaq 8(%rsp), %rsp
    retq
    int3

/* struct frame, upwards: rbp rbx r15 r14 r13 r12 r11 r10 r9 r8 rax rcx rdx rsi rdi code rip cs flags rsp ss */
#define CS 136
#define RIP 128

.macro PUSH_BELOW_RSI rax=%rax, ten=%r10, thirteen=%r13
    pushq %rdx
    pushq %rcx
    pushq \rax
    pushq %r8
    pushq %r9
    pushq \ten
    pushq %r11
    pushq %r12
    pushq \thirteen
    pushq %r14
    pushq %r15
    pushq %rbx
    pushq %rbp
    xorl %edx, %edx
    xorl %ecx, %ecx
    xorl %r8d, %r8d
    xorl %r9d, %r9d
    xorl %r10d, %r10d
    xorl %r11d, %r11d
    xorl %r12d, %r12d
    xorl %r13d, %r13d
    xorl %r14d, %r14d
    xorl %r15d, %r15d
    xorl %ebx, %ebx
    xorl %ebp, %ebp
.endm

.macro POP_ALL_BUT_RDI
    popq %rbp
    popq %rbx
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rax
    popq %rcx
    popq %rdx
    popq %rsi
.endm

/* Called where the return address lies on top of a frame: RDI and RSI go where they belong, the address stays on top. */
.macro PUSH_UNDER_RETURN ten=%r10
    pushq %rsi
    movq 8(%rsp), %rsi
    movq %rdi, 8(%rsp)
    PUSH_BELOW_RSI ten=\ten
    pushq %rsi
.endm

.macro KERNELS_TABLE scratch
    movq %cr3, \scratch
    andq $~USERS_TABLE, \scratch
    movq \scratch, %cr3
.endm

.macro TO_USERS_TABLE scratch
    movq %cr3, \scratch
    orq $USERS_TABLE, \scratch
    movq \scratch, %cr3
.endm

.macro GATE n, code
    .balign 16
gate_\n:
    endbr64
    clac
#ifndef BUG_DF
    cld
#endif
    .if \code == 0
    pushq $-1
    .endif
    call enter
    movq %rsp, %rdi
    movl $\n, %esi
    call handle
    jmp leave
    .pushsection .rodata
    .quad \n, gate_\n
    .popsection
.endm

    .section .rodata
    .balign 8
    .globl gates
gates:
    .section .entry.text
    GATE 3, 0
    GATE 6, 0
    GATE 13, 1
    GATE 14, 1
    GATE 0x50, 0
    GATE 0x51, 0
    GATE 0x52, 0
    GATE 0xff, 0
    .section .rodata
    .quad 1, gate_debug, 2, gate_nmi, 8, gate_double, 0, 0
    .section .entry.text

    /* Goes on with RSP at a frame with the kernel's GS and page table: the thread's if user code was interrupted. */
    .balign 16
enter:
#ifdef BUG_ENTER_R10
    PUSH_UNDER_RETURN ten=%r9
#else
    PUSH_UNDER_RETURN
#endif
    testb $3, CS + 8(%rsp)
    jz 1f
    swapgs
    lfence
    KERNELS_TABLE %rax
    leaq 8(%rsp), %rdi
    call to_thread_stack
    jmp 3f
1:  leaq the_iret(%rip), %rcx
    cmpq %rcx, RIP + 8(%rsp)
    je 2f
#ifdef BUG_FAULT_SWAP
    movq copy_word(%rip), %rcx
    cmpq %rcx, RIP + 8(%rsp)
    jne 4f
    swapgs
4:
#endif
    lfence
    RET
    /* The user's context was none: its frame is where RSP was. */
2:
#ifndef BUG_IRET_FAULT
    swapgs
#endif
    lfence
    KERNELS_TABLE %rax
    leaq 8(%rsp), %rdi
    call from_failed_iret
3:  popq %rcx
    movq %rax, %rsp
    pushq %rcx
    RET

leave:
    testb $3, CS(%rsp)
#ifdef BUG_WRONG_FRAME
    jz 1f
    movq FRAME, %rsp
    jmp leave_to_user
1:
#else
    jnz leave_to_user
#endif
    testl %eax, %eax
    jnz leave_far
    POP_ALL_BUT_RDI
    popq %rdi
    addq $8, %rsp
    iretq

    /* To a thread of the kernel's own: what must come back is put below its stack pointer. */
leave_far:
    popq %rbp
    popq %rbx
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    movq 8(%rsp), %rcx
    movq 16(%rsp), %rdx
    movq 24(%rsp), %rsi
    movq 72(%rsp), %rax
    movq 64(%rsp), %rdi
    movq %rdi, -24(%rax)
    movq 48(%rsp), %rdi
    movq %rdi, -16(%rax)
    movq 56(%rsp), %rdi
    movq %rdi, -8(%rax)
    movq (%rsp), %rdi
    movq %rdi, -32(%rax)
    movq 32(%rsp), %rdi
    leaq -32(%rax), %rsp
    popq %rax
#ifdef BUG_FAR_FLAGS
    leaq 8(%rsp), %rsp
    sti
#else
    popfq
#endif
    lretq

    .globl leave_to_user
leave_to_user:
    POP_ALL_BUT_RDI
    movq %rsp, %rdi
    movq TRAMPOLINE, %rsp
    pushq 48(%rdi)
    pushq 40(%rdi)
    pushq 32(%rdi)
    pushq 24(%rdi)
    pushq 16(%rdi)
    pushq (%rdi)
    TO_USERS_TABLE %rdi
    popq %rdi
    swapgs
    .globl the_iret
the_iret:
    iretq

    .balign 16
    .globl call_gate
call_gate:
    endbr64
    swapgs
    .globl behind_swapgs
behind_swapgs:
    movq %rsp, SCRATCH
    KERNELS_TABLE %rsp
    movq TOP, %rsp
    pushq $0x2b
    pushq SCRATCH
    pushq %r11
    pushq $0x33
    pushq %rcx
    pushq %rax
    pushq %rdi
    pushq %rsi
#ifdef BUG_CALL_R13
    PUSH_BELOW_RSI rax=$-38, thirteen=%r12
#else
    PUSH_BELOW_RSI rax=$-38
#endif
    movq %rsp, %rdi
    lfence
    call system_call
    testl %eax, %eax
#ifdef BUG_FALLBACK_CR3
    jnz 1f
    POP_ALL_BUT_RDI
    movq %rsp, %rdi
    movq TRAMPOLINE, %rsp
    pushq 48(%rdi)
    pushq 40(%rdi)
    pushq 32(%rdi)
    pushq 24(%rdi)
    pushq 16(%rdi)
    movq (%rdi), %rdi
    swapgs
    jmp the_iret
1:
#else
    jz leave_to_user
#endif
    POP_ALL_BUT_RDI
    movq %rsp, %rdi
    movq TRAMPOLINE, %rsp
    pushq 40(%rdi)
    pushq (%rdi)
    TO_USERS_TABLE %rdi
    popq %rdi
    popq %rsp
    swapgs
    .globl the_sysret
the_sysret:
    sysretq

    /* Kernel code was interrupted, with whichever GS and page table: RBX and R14 keep them. */
    .balign 16
paranoid_enter:
    PUSH_UNDER_RETURN
    cld
    movq %cr3, %r14
    movq %r14, %rax
    andq $~USERS_TABLE, %rax
    cmpq %rax, %r14
    je 1f
    movq %rax, %cr3
1:  rdgsbase %rbx
#ifndef BUG_NMI_BY_CS
    movl $NUMBER_SELECTOR, %eax
    lsl %eax, %eax
    movq bases(, %rax, 8), %rax
    wrgsbase %rax
#endif
    lfence
    RET

paranoid_leave:
    movq %cr3, %rax
    cmpq %rax, %r14
    je 1f
    movq %r14, %cr3
1:
#ifndef BUG_PARANOID_GS
    wrgsbase %rbx
#endif
    RET

    .balign 16
gate_debug:
    endbr64
    clac
    cld
    pushq $-1
    testb $3, 16(%rsp)
    jz 1f
    call enter
    movq %rsp, %rdi
    movl $1, %esi
    call handle
    jmp leave
1:  call paranoid_enter
    movq %rsp, %rdi
    movl $1, %esi
    call handle_paranoid
    call paranoid_leave
    POP_ALL_BUT_RDI
    popq %rdi
    addq $8, %rsp
    iretq

gate_double:
    endbr64
    call paranoid_enter
    movq %rsp, %rdi
    movl $8, %esi
    call handle_paranoid

    /* NMI: any iret in its handler lets the next one in, which finds the frame's words in use; so the frame is copied,
     * and a word above it says so. Downwards from there: in use, the CPU's frame, RDX, the copy. */
    .balign 16
gate_nmi:
    endbr64
    clac
    cld
#ifdef BUG_NESTED_NMI
    testb $3, 8(%rsp)
    jnz 1f
    pushq $-1
    call paranoid_enter
    movq %rsp, %rdi
    movl $2, %esi
    call handle_paranoid
    call paranoid_leave
    POP_ALL_BUT_RDI
    popq %rdi
    addq $8, %rsp
    iretq
1:  pushq %rdx
#else
    pushq %rdx
    testb $3, 16(%rsp)
    jz 1f
#endif
    popq %rdx
    pushq $-1
    call enter
    movq %rsp, %rdi
    movl $2, %esi
    call handle
    jmp leave_to_user
1:  cmpq $0, 48(%rsp)
    jne 2f
    leaq 48(%rsp), %rdx
    subq 32(%rsp), %rdx
    cmpq $4096, %rdx
    jb 2f
#ifndef BUG_NMI_RDX
    movq (%rsp), %rdx
#endif
    movq $1, 48(%rsp)
    .rept 5
    pushq 40(%rsp)
    .endr
    pushq $-1
    call paranoid_enter
    movq %rsp, %rdi
    movl $2, %esi
    call handle_paranoid
    call paranoid_leave
    POP_ALL_BUT_RDI
    popq %rdi
    addq $8, %rsp
    movq $0, 88(%rsp)
    iretq
2:  popq %rdx
    iretq

    .text
    /* void switch_to(from, to, node): from's registers into the node, to's out of its own. */
    .globl switch_to
    .balign 16
switch_to:
    endbr64
    movq %rbx, 40(%rdx)
    movq %rbp, 8(%rdx)
#ifndef BUG_SWITCH_STALE
    movq %r12, 32(%rdx)
#endif
    movq %r13, 16(%rdx)
    movq %r14, 48(%rdx)
    movq %r15, 24(%rdx)
    movq %rsp, 56(%rdx)
    movq %rdx, (%rdi)
    movq (%rsi), %rdx
    movq 56(%rdx), %rsp
    movq 24(%rdx), %r15
#ifdef BUG_SWITCH_R14
    movq 24(%rdx), %r14
#else
    movq 48(%rdx), %r14
#endif
    movq 16(%rdx), %r13
    movq 32(%rdx), %r12
    movq 8(%rdx), %rbp
    movq 40(%rdx), %rbx
    jmp finish_switch

    /* A thread's first steps: a frame of user code, or flags and a far address. */
    .globl began_user, began_kernel
began_user:
    endbr64
    jmp leave_to_user
began_kernel:
    endbr64
    popq %rdi
    popfq
    lretq

    /* A thread of the kernel's own gives way, and goes on by the far return. */
    .globl give_way
    .balign 16
give_way:
    endbr64
    popq %rax
    movl %cs, %ecx
    pushq %rcx
    pushq %rax
    pushfq
    cli
    call schedule
    popfq
    lretq

    /* u64 copy_from_user(to, from, words): the number of words that were not copied. */
    .globl copy_from_user
    .balign 16
copy_from_user:
    endbr64
    movq %rdx, %rcx
    stac
1:  testq %rcx, %rcx
    jz 3f
2:  movq (%rsi), %rax
    movq %rax, (%rdi)
    addq $8, %rsi
    addq $8, %rdi
    decq %rcx
    jmp 1b
3:  clac
    movq %rcx, %rax
    RET
    .globl copy_to_user
    .balign 16
copy_to_user:
    endbr64
    movq %rdx, %rcx
    stac
4:  rep movsq
5:  clac
    movq %rcx, %rax
    RET
    .section .rodata
    .balign 8
    .globl fixups, copy_word
copy_word:
fixups:
    .quad 2b, 3b, 4b, 5b, 0, 0
