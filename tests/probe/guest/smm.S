/*
 * A guest whose interrupts go on while system management mode (Intel SDM vol. 3C, chapter 32) comes between them. Its
 * SMI handler lies at SMBASE + 0x8000, where SeaBIOS has put SMBASE, and every other time loads tables of its own, goes
 * to protected mode and takes an interrupt there. Ends by isa-debug-exit with the number of SMIs.
 */
#include "boot.h"

#define ROUNDS 20
#define SMBASE 0xa0000
#define SMI_ENTRY 0x8000
#define APM_CONTROL 0xb2
#define SMM_CODE 8
#define SMM_DATA 16

main:   gate 0x40, plain
        int $0x40
        /* Open SMRAM of the i440FX (its register 0x72), put the handler there, and close it. */
        mov $0x80000070, %eax
        mov $0xcf8, %edx
        out %eax, %dx
        mov $0xcfe, %edx
        mov $0x4a, %al
        out %al, %dx
        mov $smi, %esi
        mov $(SMBASE + SMI_ENTRY), %edi
        mov $(smi_end - smi), %ecx
        rep movsb
        mov $0x0a, %al
        out %al, %dx
        /* The gate of its table. */
        mov $smm_plain, %eax
        mov %ax, smm_idt + 0x41 * 8
        movw $SMM_CODE, smm_idt + 0x41 * 8 + 2
        movw $0x8e00, smm_idt + 0x41 * 8 + 4
        shr $16, %eax
        mov %ax, smm_idt + 0x41 * 8 + 6

        mov $ROUNDS, %ebp
1:      int $0x40
        mov $0x42, %al
        out %al, $APM_CONTROL
        int $0x40
        dec %ebp
        jnz 1b
        mov count, %eax
        out %al, $0xf4
        hlt

        .balign 16
plain:  nop
        IRET

        .code16
smi:    addr32 incl count
        addr32 testb $1, count
        jz 1f
        lidtl %cs:SMI_ENTRY + smm_idt_pointer - smi
        lgdtl %cs:SMI_ENTRY + smm_gdt_pointer - smi
        mov %cr0, %eax
        or $1, %al
        mov %eax, %cr0
        ljmpl $SMM_CODE, $smm_protected
1:      rsm
smm_idt_pointer:
        .word 256 * 8 - 1
        .long smm_idt
smm_gdt_pointer:
        .word smm_gdt_end - smm_gdt - 1
        .long smm_gdt
smi_end:
        .code32
smm_protected:
        mov $SMM_DATA, %eax
        mov %eax, %ds
        mov %eax, %ss
        mov $smm_stack, %esp
        int $0x41
        rsm
        .balign 16
smm_plain:
        nop
        iret

        .data
        .balign 8
smm_gdt:
        .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
smm_gdt_end:
count:  .long 0
        .bss
        .balign 16
smm_idt:
        .skip 256 * 8
        .skip 256
smm_stack:
