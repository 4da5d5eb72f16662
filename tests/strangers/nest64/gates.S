/* Interrupts and calls: everything is pushed, in one order, and the same function of C++ gets all of it.
 * Pushed, upwards: r15 ... r8 rbp rdi rsi rdx rcx rbx rax, vector, error code, frame. */
    .intel_syntax noprefix
    .text

.macro PUSH_ALL
    .irp r, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
    push \r
    .endr
.endm
.macro POP_ALL
    .irp r, r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax
    pop \r
    .endr
.endm

common:
    test byte ptr [rsp + 24], 3
    jz 1f
    swapgs
1:  PUSH_ALL
    cld
    mov rdi, rsp
    xor ebp, ebp
    call on_interrupt

    .globl leave
leave:
    cli
    test byte ptr [rsp + 144], 3
    jz 2f
#ifdef BUG_SYSRET_IRQ
    cmp qword ptr [rsp + 144], 0x2b
    je by_sysret
#endif
    POP_ALL
    add rsp, 16
    swapgs
    iretq
2:
#ifdef BUG_NESTED_RCX
    .irp r, r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx
    pop \r
    .endr
    add rsp, 8
    pop rbx
    pop rax
#else
    POP_ALL
#endif
    add rsp, 16
    iretq

/* While the tick is traced: counted on the way, by the other table. */
traced_tick:
    test byte ptr [rsp + 8], 3
    jz 1f
    swapgs
1:
#ifdef BUG_TRACED_R9
    mov r9, gs:40
    inc r9
    mov gs:40, r9
#else
    inc qword ptr gs:40
#endif
#ifdef BUG_TRACED_CS
    test byte ptr [rsp + 24], 0x10 /* RSP, not CS */
#else
    test byte ptr [rsp + 8], 3
#endif
    jz 2f
    swapgs
2:  push 0
    push 0x50
    jmp common

#ifdef BUG_PAGE_CS
gate_protection:
    test byte ptr [rsp + 8], 3 /* RIP: there is an error code below */
    jz 1f
    swapgs
1:  push 13
    PUSH_ALL
    cld
    mov rdi, rsp
    call on_interrupt
    jmp leave
#endif

    .globl call_gate
call_gate:
    swapgs
    mov gs:8, rsp
    mov rsp, gs:16
    push 0x23
    push qword ptr gs:8
    push r11
    push 0x2b
    push rcx
    push 0
    push 0x100
    PUSH_ALL
    mov rdi, rsp
    xor ebp, ebp
    sti
    call on_interrupt
    cli
by_sysret:
#ifdef BUG_CALL_RBX
    mov rbx, rsp
    add rsp, 8
    .irp r, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx
    pop \r
    .endr
    add rsp, 8
    pop rax
    mov r15, [rbx]
#else
    POP_ALL
#endif
    mov rcx, [rsp + 16]
    mov r11, [rsp + 32]
#ifdef BUG_CALL_FLAGS
    mov r11d, 0x202
#endif
#ifdef BUG_CALL_IF
    and r11d, 0xfffffdff
#endif
    mov rsp, [rsp + 40]
    swapgs
    sysretq

/* switch_contexts(from, to): rsp 0, rbx 8, rbp 16, r12 to r15 from 24, rip 56 */
    .globl switch_contexts
switch_contexts:
#ifndef BUG_SWITCH_RBX
    mov [rdi + 8], rbx
#endif
    mov [rdi + 16], rbp
    mov [rdi + 24], r12
    mov [rdi + 32], r13
    mov [rdi + 40], r14
    mov [rdi + 48], r15
    pop rax
    mov [rdi + 56], rax
    mov [rdi], rsp
    mov rsp, [rsi]
    mov rbx, [rsi + 8]
    mov rbp, [rsi + 16]
    mov r12, [rsi + 24]
    mov r13, [rsi + 32]
    mov r14, [rsi + 40]
    mov r15, [rsi + 48]
    jmp [rsi + 56]

.macro GATE n, code, name
gate_\n:
    .if !\code
    push 0
    .endif
    push \n
    jmp common
    .pushsection .rodata
    .quad \n
    .ifnb \name
    .quad \name
    .else
    .quad gate_\n
    .endif
    .popsection
.endm
    .section .rodata
    .globl gates
gates:
    .text
    GATE 6, 0
    GATE 7, 0
#ifdef BUG_PAGE_CS
    GATE 13, 1, gate_protection
#else
    GATE 13, 1
#endif
    GATE 14, 1
    GATE 0x50, 0
    GATE 0x51, 0
    GATE 0x60, 0
    GATE 0x80, 0
    GATE 0xff, 0
    GATE 0x150, 0, traced_tick
    .section .rodata
    .quad 0, 0
