/*
 * A guest that does to its handlers what makes entries hard to see without QEMU's help: it runs them as ordinary code
 * before they are in a gate, rewrites gates in place, shares one handler between vectors, falls and jumps from one
 * handler into another, raises with `int` what normally pushes an error code, and starts a handler twice because its
 * first instruction faults, and takes an interrupt between another's delivery and its handler. BITS is 32 or 64. Ends by isa-debug-exit with the number of the last step.
 */
#if BITS == 64
#define W 8
#define AX rax
#define BX rbx
#define CX rcx
#define SP rsp
#define IRET iretq
#define GATE_SHIFT 4
#define CODE32_SELECTOR 24
#else
#define W 4
#define AX eax
#define BX ebx
#define CX ecx
#define SP esp
#define IRET iret
#define GATE_SHIFT 3
#define CODE32_SELECTOR 8
#endif
#define CODE_SELECTOR 8
#define DATA_SELECTOR 16

        .text
        .code32
        .long 0x1badb002, 0, -0x1badb002 /* multiboot */
        .global _start
_start: cli
        mov $stack_top, %esp
        lgdt gdt_pointer
        ljmp $CODE32_SELECTOR, $1f
1:      mov $DATA_SELECTOR, %eax
        mov %eax, %ds
        mov %eax, %es
        mov %eax, %ss
#if BITS == 64
        movl $table3 + 3, table4
        movl $table2 + 3, table3
        mov $table2, %edi
        mov $0x83, %eax /* present, writable, 2 MiB */
2:      mov %eax, (%edi)
        add $0x200000, %eax
        add $8, %edi
        cmp $table2 + 4096, %edi
        jne 2b
        mov %cr4, %eax
        or $0x20, %eax
        mov %eax, %cr4
        mov $table4, %eax
        mov %eax, %cr3
        mov $0xc0000080, %ecx
        rdmsr
        or $0x100, %eax
        wrmsr
        mov %cr0, %eax
        or $0x80000000, %eax
        mov %eax, %cr0
        ljmp $CODE_SELECTOR, $start64
        .code64
start64:
#endif
        lidt idt_pointer

/* Put \handler into the gate of \vector. */
        .macro gate vector, handler
        mov $\vector, %ebx
        mov $\handler, %eax
        call set_gate
        .endm

/* Run \handler as ordinary code: with a frame such as the CPU would push, by a jump. */
        .macro run handler
#if BITS == 64
        mov %rsp, %rdx
        and $-16, %rsp
        push $DATA_SELECTOR
        push %rdx
#endif
        pushf
        push $CODE_SELECTOR
        push $9f
        jmp \handler
9:
        .endm

        /* 1: a handler that ran before it was in a gate */
        run plain1
        gate 0x40, plain1
        int $0x40
        /* 2: a gate rewritten in place, to a handler that ran before */
        gate 0x41, plain2
        int $0x41
        run plain3
        gate 0x41, plain3
        int $0x41
        /* 3: and back again */
        gate 0x41, plain2
        int $0x41
        /* 4: one handler for several vectors */
        gate 0x50, shared
        gate 0x51, shared
        gate 0x52, shared
        int $0x51
        int $0x52
        /* 5: an exception without error code, and the same vector by `int` */
        gate 6, skip2
        ud2
        gate 6, plain4
        int $6
        /* 6: one with error code, and the same vector by `int` without */
        gate 13, drop_error
        mov $0xfff0, %eax
        mov %eax, %fs
        gate 13, plain5
        int $13
        /* 7: one handler runs on into another, one jumps */
        gate 0x60, falls
        gate 0x61, fallen_into
        gate 0x63, jumps
        int $0x60
        int $0x61
        int $0x63
        /* 8: a handler whose first instruction faults and is run again */
        gate 6, mend
        gate 0x62, broken
        int $0x62
        /* 9: interrupts between the delivery of another and its handler's first instruction, until three were seen
           (at most some seconds); EDI counts the deliveries, ESI what the timer saw */
        gate 0x20, timer
        gate 0x70, plain6
        movb $0x8f, idt + (0x70 << GATE_SHIFT) + 5 /* a trap gate leaves IF set */
        .irp pair, 0x1120, 0x2021, 0x0421, 0x0121, 0xfe21, 0x3443, 0x8040, 0x0040 /* IRQ 0 is 0x20, at 9 kHz */
        mov $(\pair >> 8), %al
        out %al, $(\pair & 0xff)
        .endr
        xor %edi, %edi
        xor %esi, %esi
        sti
7:      inc %edi
        int $0x70
        cmp $3, %esi
        jae 6f
        cmp $500000, %edi
        jb 7b
6:      cli
        /* 10: an iret that only serialises */
#if BITS == 64
        mov %rsp, %rdx
        push $DATA_SELECTOR
        push %rdx
#endif
        pushf
        push $CODE_SELECTOR
        push $8f
        IRET
8:
        mov $10, %eax
        out %al, $0xf4
        hlt

set_gate:
        shl $GATE_SHIFT, %ebx
#if BITS == 64
        lea idt(%rbx), %rbx
#else
        lea idt(%ebx), %ebx
#endif
        mov %ax, (%BX)
        movw $CODE_SELECTOR, 2(%BX)
        movw $0x8e00, 4(%BX)
        shr $16, %eax
        mov %ax, 6(%BX)
        ret

        /* Handlers. Each begins a block of its own. */
        .balign 16
plain1: nop
        IRET
        .balign 16
plain2: nop
        IRET
        .balign 16
plain3: nop
        IRET
        .balign 16
plain4: nop
        IRET
        .balign 16
plain5: nop
        IRET
        .balign 16
plain6: nop
        IRET
        .balign 16
timer:  push %AX
        cmpl $plain6, W(%SP)
        jne 1f
        inc %esi
1:      mov $0x20, %al
        out %al, $0x20
        pop %AX
        IRET
        .balign 16
shared: nop
        IRET
        .balign 16
skip2:
#if BITS == 64
        addq $2, (%rsp)
#else
        addl $2, (%esp)
#endif
        IRET
        .balign 16
drop_error:
        add $W, %SP
#if BITS == 64
        addq $2, (%rsp)
#else
        addl $2, (%esp)
#endif
        IRET
        .balign 16
falls:  nop
fallen_into:
        nop
        IRET
        .balign 16
jumps:  nop
        jmp fallen_into
        .balign 16
broken: ud2
        IRET
        .balign 16
mend:   movw $0x9090, broken
        IRET

        .data
        .balign 8
gdt:    .quad 0
#if BITS == 64
        .quad 0x00af9a000000ffff
        .quad 0x00cf92000000ffff
        .quad 0x00cf9a000000ffff
#else
        .quad 0x00cf9a000000ffff
        .quad 0x00cf92000000ffff
#endif
gdt_end:
gdt_pointer:
        .word gdt_end - gdt - 1
        .quad gdt
idt_pointer:
        .word (256 << GATE_SHIFT) - 1
        .quad idt

        .bss
        .balign 4096
table4: .skip 4096
table3: .skip 4096
table2: .skip 4096
idt:    .skip 4096
        .skip 8192
stack_top:
