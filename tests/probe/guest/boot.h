/*
 * What the guests of this directory begin with: BITS (32 or 64) bit code with flat segments for kernel and user, memory
 * mapped as it is (64-bit code: the first and the fourth GiB, for user code too), an empty IDT, a TSS. Goes on at `main`.
 */
#if BITS == 64
#define W 8
#define AX rax
#define BX rbx
#define CX rcx
#define DX rdx
#define DI rdi
#define SP rsp
#define IRET iretq
#define SYSEXIT sysexitq
#define GATE_SHIFT 4
#define BOOT_SELECTOR 24
#define USER_CODE 0x2b
#define TSS_SELECTOR 0x38
#else
#define W 4
#define AX eax
#define BX ebx
#define CX ecx
#define DX edx
#define DI edi
#define SP esp
#define IRET iret
#define SYSEXIT sysexit
#define GATE_SHIFT 3
#define BOOT_SELECTOR 8
#define USER_CODE 0x1b
#define TSS_SELECTOR 0x28
#endif
#define CODE_SELECTOR 8
#define DATA_SELECTOR 16
#define USER_DATA 0x23

        .text
        .code32
        .long 0x1badb002, 0, -0x1badb002 /* multiboot */
        .global _start
_start: cli
        mov $stack_top, %esp
        mov $tss, %eax
        mov %ax, gdt + TSS_SELECTOR + 2
        shr $16, %eax
        mov %al, gdt + TSS_SELECTOR + 4
        mov %ah, gdt + TSS_SELECTOR + 7
        lgdt gdt_pointer
        ljmp $BOOT_SELECTOR, $1f
1:      mov $DATA_SELECTOR, %eax
        mov %eax, %ds
        mov %eax, %es
        mov %eax, %ss
#if BITS == 64
        movl $table3 + 7, table4
        movl $table2 + 7, table3
        movl $table2_high + 7, table3 + 24
        mov $0x87, %eax /* present, writable, user, 2 MiB */
        xor %edi, %edi
2:      mov %eax, table2(,%edi,8)
        mov %eax, %edx
        add $0xc0000000, %edx
        mov %edx, table2_high(,%edi,8)
        add $0x200000, %eax
        inc %edi
        cmp $512, %edi
        jne 2b
        mov %cr4, %eax
        or $0x20, %eax
        mov %eax, %cr4
        mov $table4, %eax
        mov %eax, %cr3
        mov $0xc0000080, %ecx
        rdmsr
        or $0x101, %eax /* long mode, syscall */
        wrmsr
        mov %cr0, %eax
        or $0x80000000, %eax
        mov %eax, %cr0
        ljmp $CODE_SELECTOR, $start64
        .code64
start64:
#endif
        movl $stack_top, tss + 4
#if BITS == 32
        movw $DATA_SELECTOR, tss + 8
#endif
        mov $TSS_SELECTOR, %eax
        ltr %ax
        lidt idt_pointer
        jmp main

/* Put \handler into the gate of \vector, which user code may call. */
        .macro gate vector, handler
        mov $\vector, %ebx
        mov $\handler, %eax
        call set_gate
        .endm

set_gate:
        shl $GATE_SHIFT, %ebx
        add $idt, %ebx
        mov %ax, (%BX)
        movw $CODE_SELECTOR, 2(%BX)
        movw $0xee00, 4(%BX)
        shr $16, %eax
        mov %ax, 6(%BX)
        ret

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

/* Write \value (below 4 GiB, \high above that) into an MSR. */
        .macro write_msr number, value, high=0
        mov $\number, %ecx
        mov $\value, %eax
        mov $\high, %edx
        wrmsr
        .endm

        .data
        .balign 8
gdt:    .quad 0
#if BITS == 64
        .quad 0x00af9a000000ffff
        .quad 0x00cf92000000ffff
        .quad 0x00cf9a000000ffff
        .quad 0x00cff2000000ffff
        .quad 0x00affa000000ffff
        .quad 0x00cff2000000ffff
        .quad 0x0000890000000067, 0
#else
        .quad 0x00cf9a000000ffff
        .quad 0x00cf92000000ffff
        .quad 0x00cffa000000ffff
        .quad 0x00cff2000000ffff
        .quad 0x0000890000000067
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
table2_high:
        .skip 4096
idt:    .skip 4096
tss:    .skip 128
        .skip 8192
stack_top:
        .text
