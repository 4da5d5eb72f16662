/*
 * Numbers that C and assembly share: selectors, slots of the save area, offsets into struct cpu and
 * struct thread (checked against the C structures in cpu.c).
 */
#ifndef LAYOUT_H
#define LAYOUT_H

#include "numbers.h"

/* The kernel lives in the last 2 GB, which maps physical memory from 0 ("kernel" code model). */
#define KERNEL_BASE 0xffffffff80000000
/* The local APIC's registers (physical FEE00000h) appear here. */
#define LAPIC_BASE 0xffffffffc0000000
/* Real-mode code that starts the other CPUs; also the SIPI vector (address >> 12). */
#define TRAMPOLINE 0x8000

/* Where nothing is mapped. */
#define UNMAPPED 0xffffffffd0000000

/* Selectors. SYSRET loads SS from STAR[63:48] + 8 and CS from STAR[63:48] + 16. */
#define KERNEL_CS 0x08
#define KERNEL_SS 0x10
#ifdef BUG_STAR_BAD /* BUG: an order of descriptors that has no place for SYSRET: it loads the kernel's SS */
#define USER_CS 0x1b
#define USER_SS 0x23
#define STAR_USER 0x0b
#else
#define USER_SS 0x1b
#define USER_CS 0x23
#define STAR_USER 0x13
#endif
#define ABSENT_SS 0x3b /* a data segment for user mode that is marked not present */
#define TSS_SELECTOR 0x28

#define CR0_TS 8

#define MSR_EFER 0xc0000080
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_FMASK 0xc0000084
#define MSR_FS_BASE 0xc0000100
#define MSR_GS_BASE 0xc0000101
#define MSR_KERNEL_GS_BASE 0xc0000102

#ifdef STYLE_SEL4 /* this style has no need of GS in its entries */
#define NO_SWAPGS
#endif

/*
 * How GS is used. NO_SWAPGS: the kernel's base is active all the time. EQUAL_GS: both MSRs hold the
 * kernel's base, SWAPGS is executed where it belongs but changes nothing. In both cases programs have
 * no GS base of their own. FSGSBASE (needs a CPU that has it): programs load their bases themselves.
 */
#ifdef NO_SWAPGS
#define SWAPGS
#else
#define SWAPGS swapgs
#endif
#if defined(NO_SWAPGS) || defined(EQUAL_GS)
#define NO_USER_GS
#endif

/* Interrupt stack table indices. */
#define IST_DOUBLE_FAULT 1
#define IST_NMI 2
#define IST_DEBUG 3

#ifdef STYLE_SEL4
/*
 * Slots of a save area: as on ia32 (see i386/layout.h), with the other registers between RBP and FaultIP.
 * Between FAULT_IP and SS lies what the CPU and the stubs push, in their order; the CPU aligns its stack to
 * 16 bytes, and so is FRAME_END.
 */
#define SLOT_RAX (0 * 8)
#define SLOT_RBX (1 * 8)
#define SLOT_RCX (2 * 8)
#define SLOT_RDX (3 * 8)
#define SLOT_RSI (4 * 8)
#define SLOT_RDI (5 * 8)
#define SLOT_RBP (6 * 8)
#define SLOT_R8 (7 * 8)
#define SLOT_R9 (8 * 8)
#define SLOT_R10 (9 * 8)
#define SLOT_R11 (10 * 8)
#define SLOT_R12 (11 * 8)
#define SLOT_R13 (12 * 8)
#define SLOT_R14 (13 * 8)
#define SLOT_R15 (14 * 8)
#define SLOT_FAULT_IP (15 * 8) /* where the stubs push the vector; then: RIP of the last entry */
#define SLOT_ERROR (16 * 8)
#define SLOT_RIP (17 * 8)
#define SLOT_CS (18 * 8)
#define SLOT_RFLAGS (19 * 8)
#define SLOT_RSP (20 * 8)
#define SLOT_SS (21 * 8)
#define SLOT_FS_BASE (22 * 8)
#define FRAME_END (SLOT_SS + 8)
#else
/*
 * Slots of a save area. 0-15 are the general registers; the CPU's own order is not used, so that
 * nothing works by accident. The x87/SSE image is 16-byte aligned as FXSAVE demands.
 */
#define SLOT_RAX (0 * 8)
#define SLOT_RBX (1 * 8)
#define SLOT_RCX (2 * 8)
#define SLOT_RDX (3 * 8)
#define SLOT_RSI (4 * 8)
#define SLOT_RDI (5 * 8)
#define SLOT_RBP (6 * 8)
#define SLOT_RSP (7 * 8)
#define SLOT_R8 (8 * 8)
#define SLOT_R9 (9 * 8)
#define SLOT_R10 (10 * 8)
#define SLOT_R11 (11 * 8)
#define SLOT_R12 (12 * 8)
#define SLOT_R13 (13 * 8)
#define SLOT_R14 (14 * 8)
#define SLOT_R15 (15 * 8)
#define SLOT_RIP (16 * 8)
#define SLOT_RFLAGS (17 * 8)
#define SLOT_SS (18 * 8)
#define SLOT_FS_BASE (19 * 8)
#ifdef BUG_SLOT_CLASH /* BUG: FS base's */
#define SLOT_CS (19 * 8)
#else
#define SLOT_CS (20 * 8)
#endif
#define SLOT_BY_SYSCALL (21 * 8) /* nonzero: saved at a SYSCALL, may be resumed by SYSRET */
#endif
#define SLOT_FXSAVE (24 * 8)
#define AREA_SIZE (24 * 8 + 512)

/* struct thread: the save area comes first, so one pointer serves for both. */
#define THREAD_KSP (AREA_SIZE + 0)
#define THREAD_BAIL (AREA_SIZE + 8)
#define THREAD_PREEMPTED (AREA_SIZE + 16)
#define THREAD_ON_CPU (AREA_SIZE + 20)

/* struct cpu, reached through the kernel's GS base. */
#define CPU_SELF 0
#define CPU_SAVE 8
#define CPU_STACK 16
#define CPU_USER_RSP 24
#define CPU_CURRENT 32
#define CPU_NESTED 40
#define CPU_LAST 48

/*
 * WIDE_WINDOW: so many turns of LOOP between SWAPGS and SYSRET. They stand for the flushing of CPU
 * buffers that some processors need there, and make it likely that an NMI falls into that window.
 */
#define FLUSH_TURNS 1000000

/* SYS_CORRUPT's registers beyond the sixteen general ones. */
#define CORRUPT_RFLAGS 16
#define CORRUPT_XMM 17
#define CORRUPT_FS_BASE 18
#define CORRUPT_GS_BASE 19
#define CORRUPT_RESULT 20
#define CORRUPT_RIP 21

#endif
