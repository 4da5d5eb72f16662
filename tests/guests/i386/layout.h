/*
 * Numbers that C and assembly share: selectors, slots of the save area, offsets into struct cpu and
 * struct thread (checked against the C structures in cpu.c). EIP, EFLAGS, CR2 ... go by the names of
 * their 64-bit successors where code is shared.
 */
#ifndef LAYOUT_H
#define LAYOUT_H

#include "numbers.h"

/* The kernel has the last GB; its first 256 MB map physical memory from 0. */
#define KERNEL_BASE 0xc0000000
/* The local APIC's registers appear where they are physically. */
#define LAPIC_BASE 0xfee00000

/* Selectors. SYSEXIT loads CS from IA32_SYSENTER_CS + 16 and SS from there + 24. */
#define KERNEL_CS 0x08
#define KERNEL_SS 0x10
#define USER_CS 0x1b
#define USER_SS 0x23
#define USER_ES 0x2b  /* the same segment; some programs load it into ES */
#define TLS_A 0x33    /* thread-local storage: the bases differ from thread to thread; */
#define TLS_B 0x3b    /* FS has one of the two, GS the other */
#define TSS_SELECTOR 0x40

#define MSR_SYSENTER_CS 0x174
#define MSR_SYSENTER_ESP 0x175
#define MSR_SYSENTER_EIP 0x176

/* In place of an error code: the context came by SYSENTER, which keeps neither EIP nor ESP. */
#define BY_SYSENTER -1

/*
 * Slots of a save area. The first sixteen are seL4's for ia32. Between FAULT_IP and SS lies what the CPU
 * and the stubs push, in their order.
 */
#define SLOT_EAX 0
#define SLOT_EBX 4
#define SLOT_ECX 8
#define SLOT_EDX 12
#define SLOT_ESI 16
#define SLOT_EDI 20
#define SLOT_EBP 24
#define SLOT_FAULT_IP 28 /* where the stubs push the vector; then: EIP of the last entry */
#define SLOT_ERROR 32
#define SLOT_NEXT_IP 36
#define SLOT_CS 40
#define SLOT_FLAGS 44
#define SLOT_ESP 48
#define SLOT_SS 52
#define SLOT_FS_BASE 56
#define SLOT_GS_BASE 60
#define SLOT_DS 64
#define SLOT_ES 68
#define SLOT_FS 72
#define SLOT_GS 76
#define SLOT_FXSAVE 80
#define AREA_SIZE (80 + 512)
#define FRAME_END (SLOT_SS + 4)

/* struct thread: the save area comes first, so one pointer serves for both. */
#define THREAD_KSP (AREA_SIZE + 0)
#define THREAD_BAIL (AREA_SIZE + 4)
#define THREAD_ON_CPU (AREA_SIZE + 12)

/* struct cpu: there is only one. */
#define CPU_STACK 0
#define CPU_CURRENT 4

/* SYS_CORRUPT's registers beyond the general ones, which have the numbers of their slots. */
#define CORRUPT_RFLAGS 8
#define CORRUPT_XMM 9
#define CORRUPT_FS_BASE 10
#define CORRUPT_GS_BASE 11
#define CORRUPT_RESULT 12
#define CORRUPT_RIP 13
#define CORRUPT_DS 14
#define CORRUPT_ES 15
#define CORRUPT_FS 16
#define CORRUPT_GS 17

#endif
