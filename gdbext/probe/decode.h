/*
 * What an instruction is to the probe: only the few kinds that move contexts, stacks and GS bases are told apart,
 * and memory operands behind a GS prefix are taken apart so that their address can be computed.
 *
 * Opcodes and ModRM: Intel SDM vol. 2, appendix A and section 2.1; REX prefixes: section 2.2.1.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum {
    OP_OTHER,
    OP_IRET,      /* size: bytes of a popped word */
    OP_SYSRET,    /* size: 8 returns to 64-bit code */
    OP_SYSEXIT,   /* likewise */
    OP_SYSCALL,
    OP_SYSENTER,
    OP_INT_N,     /* imm: the vector */
    OP_SWAPGS,
    OP_WRMSR,
    OP_WRFSBASE,  /* reg: source, size: 4 or 8 */
    OP_WRGSBASE,
    OP_MOV_CR3,   /* reg: source */
    OP_RSM,
    OP_LIDT,
    OP_LGDT,
    OP_STORE_RSP, /* mov %rsp, memory that is not on the stack itself */
    OP_LOAD_RSP,  /* mov/pop/xchg into rsp from memory or another register than rbp */
    OP_RET,
    OP_JUMP,      /* direct: imm is the displacement from the next instruction */
    OP_JUMP_IF,
    OP_CALL,      /* direct */
    OP_JUMP_FAR,  /* indirect: target not in the instruction */
    OP_LTR,       /* reg or memory: the selector */
    OP_LLDT,      /* likewise */
    OP_FAR_JUMP,  /* of 32-bit code: imm, or memory behind size bytes: the selector */
    OP_FAR_CALL,
    OP_OUT,       /* reg: rdx, or imm: the port */
    OP_FAR_RETURN, /* size: bytes of a popped word, imm: bytes dropped behind them */
    OP_LOAD_FLAGS, /* popf, sahf. size: bytes popped, 0: sahf */
    OP_FLAGS_RET,  /* popf right in front of a near return. imm: bytes dropped behind the return address */
    OP_INVLPG,
    OP_PAGING, /* mov to CR0 or CR4: may change what every page shows */
} op_kind;

enum { NO_REG = 0xff };

/* The parts of a memory operand: base + index << scale + disp, registers by encoding number. */
typedef struct {
    int64_t disp;
    uint8_t base, index, scale;
    bool rip_relative;
    bool address32; /* the sum is cut to 32 bits before the segment base is added */
} mem_operand;

typedef struct {
    op_kind kind;
    uint8_t length, size, reg;
    bool memory;    /* OP_LTR, OP_LLDT, OP_FAR_*: the operand is in memory, see mem */
    bool gs_memory; /* a memory operand reached through GS, see mem */
    int64_t imm;
    mem_operand mem;
} insn;

typedef struct {
    const uint8_t *p, *end;
} cursor;

static inline int64_t take(cursor *c, unsigned bytes)
{
    uint64_t value = 0;
    if ((size_t)(c->end - c->p) < bytes) {
        c->p = c->end;
        return 0;
    }
    memcpy(&value, c->p, bytes);
    c->p += bytes;
    unsigned drop = 64 - 8 * bytes;
    return bytes ? (int64_t)(value << drop) >> drop : 0;
}

static bool has_modrm(unsigned op, bool two_byte)
{
    /* One bit per opcode, rows of sixteen: SDM vol. 2, tables. */
    static const uint16_t one[16] = {0x0f0f, 0x0f0f, 0x0f0f, 0x0f0f, 0, 0, 0x0a0c, 0, 0xffff, 0, 0, 0, 0x00f3, 0xff0f, 0,
                                     0xc0c0};
    static const uint16_t two[16] = {0xa00f, 0xffff, 0xff0f, 0, 0xffff, 0xffff, 0xffff, 0xff7f, 0, 0xffff,
                                     0xf838, 0xffff, 0x00ff, 0xffff, 0xffff, 0xffff};
    return (two_byte ? two : one)[op >> 4] >> (op & 15) & 1;
}

/* Decode ModRM, SIB and displacement; `rex` as encoded (0 for none). */
static void decode_memory(cursor *c, uint8_t modrm, uint8_t rex, bool address32, mem_operand *m)
{
    unsigned mod = modrm >> 6, rm = modrm & 7;

    *m = (mem_operand){.base = NO_REG, .index = NO_REG, .address32 = address32};
    if (rm == 4) {
        uint8_t sib = (uint8_t)take(c, 1);
        uint8_t index = (sib >> 3 & 7) | (rex & 2) << 2;
        m->index = index == 4 ? NO_REG : index;
        m->scale = sib >> 6;
        rm = sib & 7;
        m->base = rm == 5 && mod == 0 ? NO_REG : rm | (rex & 1) << 3;
        m->disp = rm == 5 && mod == 0 ? take(c, 4) : 0;
    } else if (rm == 5 && mod == 0) {
        m->disp = take(c, 4);
        m->rip_relative = true; /* in 64-bit code; the caller clears it elsewhere */
    } else {
        m->base = rm | (rex & 1) << 3;
    }
    if (mod == 1) {
        m->disp = take(c, 1);
    } else if (mod == 2) {
        m->disp = take(c, 4);
    }
}

/* Opcodes of the 0F map. */
static void classify_two(insn *i, unsigned op, uint8_t modrm, uint8_t rex, bool rep, bool code64)
{
    unsigned reg = modrm >> 3 & 7;
    bool memory = modrm < 0xc0;

    i->reg = (modrm & 7) | (rex & 1) << 3;
    i->size = rex & 8 ? 8 : 4;
    switch (op) {
    case 0x00:
        if (reg == 2 || reg == 3) {
            i->kind = reg == 3 ? OP_LTR : OP_LLDT;
            i->memory = memory;
            i->reg = memory ? NO_REG : i->reg;
        }
        break;
    case 0x05: i->kind = OP_SYSCALL; break;
    case 0x07: i->kind = OP_SYSRET; break;
    case 0x34: i->kind = OP_SYSENTER; break;
    case 0x35: i->kind = OP_SYSEXIT; break;
    case 0x30: i->kind = OP_WRMSR; break;
    case 0x01:
        i->kind = modrm == 0xf8 && code64      ? OP_SWAPGS
                  : memory && reg == 3 ? OP_LIDT
                  : memory && reg == 2 ? OP_LGDT
                  : memory && reg == 7 ? OP_INVLPG
                                       : OP_OTHER;
        break;
    case 0x22: i->kind = rex & 4 ? OP_OTHER : reg == 3 ? OP_MOV_CR3 : reg == 0 || reg == 4 ? OP_PAGING : OP_OTHER; break;
    case 0xaa: i->kind = OP_RSM; break;
    case 0xae:
        if (rep && !memory && code64) {
            i->kind = reg == 2 ? OP_WRFSBASE : reg == 3 ? OP_WRGSBASE : OP_OTHER;
        }
        break;
    default:
        if (op >= 0x80 && op <= 0x8f) {
            i->kind = OP_JUMP_IF;
        }
    }
}

/* Opcodes of the one-byte map. */
static void classify_one(insn *i, unsigned op, uint8_t modrm, uint8_t rex, bool code64)
{
    unsigned reg = (modrm >> 3 & 7) | (rex & 4) << 1, rm = (modrm & 7) | (rex & 1) << 3;
    bool memory = modrm < 0xc0;
    enum { RSP = 4, RBP = 5 };

    switch (op) {
    case 0xcf: i->kind = OP_IRET; break;
    case 0xcd: i->kind = OP_INT_N; break;
    case 0xe6: case 0xe7: i->kind = OP_OUT; break;
    case 0xee: case 0xef:
        i->kind = OP_OUT;
        i->reg = 2;
        break;
    case 0xc2: case 0xc3: i->kind = OP_RET; break;
    case 0xca: case 0xcb: i->kind = OP_FAR_RETURN; break;
    case 0x9d: case 0x9e: i->kind = OP_LOAD_FLAGS; break;
    case 0xe9: case 0xeb: i->kind = OP_JUMP; break;
    case 0xe8: i->kind = OP_CALL; break;
    case 0x89:
        if (memory) {
            i->kind = reg == RSP && i->mem.base != RSP && i->mem.base != RBP ? OP_STORE_RSP : OP_OTHER;
        } else if (rm == RSP && reg != RBP && reg != RSP) {
            i->kind = OP_LOAD_RSP;
        }
        break;
    case 0x8b: i->kind = reg == RSP && (memory || (rm != RBP && rm != RSP)) ? OP_LOAD_RSP : OP_OTHER; break;
    case 0x87: i->kind = reg == RSP || (!memory && rm == RSP) ? OP_LOAD_RSP : OP_OTHER; break;
    case 0x5c: i->kind = rex & 1 ? OP_OTHER : OP_LOAD_RSP; break;
    case 0x94: i->kind = rex & 1 ? OP_OTHER : OP_LOAD_RSP; break;
    case 0xff:
        reg &= 7;
        i->kind = reg == 4 || reg == 5 ? OP_JUMP_FAR : OP_OTHER;
        i->reg = reg == 4 && !memory ? rm : NO_REG;
        if (!code64 && memory && (reg == 3 || reg == 5)) {
            i->kind = reg == 3 ? OP_FAR_CALL : OP_FAR_JUMP;
            i->memory = true;
        }
        break;
    case 0x9a: i->kind = code64 ? OP_OTHER : OP_FAR_CALL; break;
    case 0xea: i->kind = code64 ? OP_OTHER : OP_FAR_JUMP; break;
    default:
        if ((op >= 0x70 && op <= 0x7f) || (op >= 0xe0 && op <= 0xe3)) {
            i->kind = OP_JUMP_IF;
        }
    }
}

/* The operand behind a GS prefix, where there is one. `m` holds the ModRM operand, if any, already. */
static bool is_gs_memory(insn *i, unsigned op, bool two_byte, uint8_t modrm, bool address32, cursor *c, bool code64)
{
    if (two_byte) {
        return has_modrm(op, true) && modrm < 0xc0 && op != 0x0d && (op < 0x18 || op > 0x1f);
    }
    if (has_modrm(op, false)) {
        return modrm < 0xc0 && op != 0x8d;
    }
    i->mem = (mem_operand){.base = NO_REG, .index = NO_REG, .address32 = address32};
    if (op >= 0xa0 && op <= 0xa3) { /* mov with an absolute address */
        i->mem.disp = take(c, address32 || !code64 ? 4 : 8);
        return true;
    }
    if ((op >= 0xa4 && op <= 0xa7) || op == 0xac || op == 0xad || op == 0x6e || op == 0x6f) {
        i->mem.base = 6; /* rsi; the string instructions' other operand is always in ES */
        return true;
    }
    return false;
}

/* Can the instruction be anything but OP_OTHER, or have a GS operand? Most cannot, and are not worth decoding. */
static inline bool may_matter(const uint8_t *bytes, size_t length, unsigned bits)
{
    /* By first byte behind REX, rows of sixteen: prefixes, 0F, and what classify_one knows. */
    static const uint16_t first[16] = {0x8000, 0, 0x4040, 0x4040, 0, 0x1000, 0x00f0, 0xffff, 0x0080, 0x6410, 0, 0,
                                       0xac0c, 0, 0xcfcf, 0x800d};
    const uint8_t *p = bytes;
    uint8_t rex = 0;

    if (bits == 64 && (*p & 0xf0) == 0x40 && length > 1) {
        rex = *p++;
    }
    if ((*p == 0x89 || *p == 0x8b) && p + 1 < bytes + length) { /* only with RSP on one side */
        uint8_t modrm = p[1];
        return ((modrm & 0x38) == 0x20 && !(rex & 4)) || ((modrm & 0xc7) == 0xc4 && !(rex & 1));
    }
    return first[*p >> 4] >> (*p & 15) & 1;
}

/* Decode the instruction in `bytes`; `bits` is 16, 32 or 64. Only lengths and kinds used here are promised. */
static insn decode(const uint8_t *bytes, size_t length, unsigned bits)
{
    insn i = {.length = (uint8_t)length, .reg = NO_REG};
    cursor c = {bytes, bytes + length};
    bool gs = false, op16 = false, address_size = false, rep = false, code64 = bits == 64;
    uint8_t rex = 0;

    for (; c.p < c.end; c.p++) {
        uint8_t b = *c.p;
        if (b == 0x65) gs = true;
        else if (b == 0x66) op16 = true;
        else if (b == 0x67) address_size = true;
        else if (b == 0xf3) rep = true;
        else if (b != 0x64 && b != 0xf0 && b != 0xf2 && b != 0x26 && b != 0x2e && b != 0x36 && b != 0x3e) break;
    }
    if (code64 && c.p < c.end && (*c.p & 0xf0) == 0x40) rex = *c.p++;
    if (c.p >= c.end) return i;

    unsigned op = *c.p++;
    bool two_byte = op == 0x0f && c.p < c.end;
    if (two_byte) op = *c.p++;
    uint8_t modrm = 0;
    bool vex = code64 && !two_byte && (op == 0xc4 || op == 0xc5 || op == 0x62);
    if (vex) return i;
    if (has_modrm(op, two_byte)) {
        modrm = (uint8_t)take(&c, 1);
        if (modrm < 0xc0) {
            decode_memory(&c, modrm, rex, address_size, &i.mem);
            i.mem.rip_relative = i.mem.rip_relative && code64;
        }
    }
    if (two_byte) {
        classify_two(&i, op, modrm, rex, rep, code64);
    } else {
        classify_one(&i, op, modrm, rex, code64);
        if (i.kind == OP_IRET || i.kind == OP_FAR_RETURN) {
            i.size = rex & 8 ? 8 : op16 == (bits != 16) ? 2 : 4;
        } else if (i.kind == OP_LOAD_FLAGS) {
            i.size = op == 0x9e ? 0 : op16 == (bits != 16) ? 2 : code64 ? 8 : 4;
        }
    }
    if (i.kind == OP_INT_N || (i.kind == OP_OUT && i.reg == NO_REG)) {
        i.imm = (uint8_t)take(&c, 1);
    } else if (i.kind == OP_JUMP || i.kind == OP_JUMP_IF || i.kind == OP_CALL) {
        i.imm = take(&c, two_byte || op == 0xe8 || op == 0xe9 ? 4 : 1);
    } else if (i.kind == OP_FAR_RETURN && op == 0xca) {
        i.imm = (uint16_t)take(&c, 2);
    } else if (i.kind == OP_FAR_JUMP || i.kind == OP_FAR_CALL) {
        i.size = op16 == (bits != 16) ? 2 : 4; /* of the offset; the selector is behind it */
        if (!i.memory) {
            take(&c, i.size);
            i.imm = (uint16_t)take(&c, 2);
        }
    }
    i.gs_memory = gs && bits != 16 && is_gs_memory(&i, op, two_byte, modrm, address_size, &c, code64);
    return i;
}

/* The register that the instruction sets to RSP, by mov or xchg, or by lea to RSP as it is behind the return of a function;
 * NO_REG: none. RBP is none: it points to frames. */
static inline uint8_t takes_rsp(const uint8_t *bytes, size_t length, unsigned bits)
{
    unsigned rex = bits == 64 ? bytes[0] : 0, at = bits == 64;
    enum { RSP = 4, RBP = 5 };

    if ((bits == 64 && (rex & 0xf8) != 0x48) || length < at + 1) {
        return NO_REG;
    }
    if (length == at + 1 && bytes[at] == 0x94 && !(rex & 1)) {
        return 0;
    }
    unsigned op = bytes[at], modrm = length > at + 1 ? bytes[at + 1] : 0;
    unsigned reg = (modrm >> 3 & 7) | (rex & 4) << 1, rm = (modrm & 7) | (rex & 1) << 3;
    if (length == at + 4 && !(rex & 3) && op == 0x8d && (modrm & 0xc7) == 0x44 && bytes[at + 2] == 0x24 &&
        bytes[at + 3] == bits / 8) {
        return (uint8_t)reg;
    }
    bool from_reg = op == 0x89 || op == 0x87, from_rm = op == 0x8b || op == 0x87;
    if (length != at + 2 || modrm < 0xc0) {
        return NO_REG;
    }
    unsigned taken = from_reg && reg == RSP ? rm : from_rm && rm == RSP ? reg : RSP;
    return taken == RSP || taken == RBP ? NO_REG : (uint8_t)taken;
}

/* Does the instruction store the register `reg` in memory that is not on the stack? */
static inline bool stores(const uint8_t *bytes, size_t length, uint8_t reg, unsigned bits)
{
    unsigned rex = bits == 64 ? bytes[0] : 0, at = bits == 64;

    if (length < at + 2 || (bits == 64 && (rex & 0xf8) != 0x48) || bytes[at] != 0x89 || bytes[at + 1] >= 0xc0) {
        return false;
    }
    unsigned base = bytes[at + 1] & 7;
    return ((bytes[at + 1] >> 3 & 7) | (rex & 4) << 1) == reg && base != 4 && (base != 5 || (rex & 1));
}

/* May the instruction store anywhere but at RSP? False only where it surely does not. */
static inline bool may_store(const uint8_t *bytes, size_t length, unsigned bits)
{
    /* One bit per opcode, rows of sixteen: stores by ModRM; those that have none. */
    static const uint16_t one[16] = {0x0303, 0x0303, 0x0303, 0x0003, 0, 0, 0x000c, 0, 0x93cf, 0, 0, 0, 0x00f3, 0xff0f, 0,
                                     0xc0c0};
    static const uint16_t two[16] = {0x0003, 0x008a, 0x0a00, 0x0500, 0, 0, 0, 0xc100, 0, 0xffff, 0x7830, 0x0c0b, 0x008b,
                                     0x0040, 0x0080, 0x0080};
    static const uint16_t bare[16] = {[6] = 0x3000, [10] = 0x0c3c};
    const uint8_t *p = bytes, *end = bytes + length;
    bool rebased = false, address_size = false;

    for (; p < end; p++) {
        bool rex = bits == 64 && (*p & 0xf0) == 0x40;
        if (!rex && (*p & 0xfc) != 0x64 && *p != 0xf0 && *p != 0xf2 && *p != 0xf3 && (*p & 0xe7) != 0x26) {
            break;
        }
        rebased = rex && (*p & 1);
        address_size |= *p == 0x67;
    }
    bool two_byte = end - p > 1 && *p == 0x0f;
    p += two_byte;
    if (end - p < 2 || !((two_byte ? two : one)[*p >> 4] >> (*p & 15) & 1)) {
        return p < end && !two_byte && (bare[*p >> 4] >> (*p & 15) & 1);
    }
    if (two_byte ? (*p & 0xfd) == 0x38 || *p == 0xf7 : *p == 0x62 || (*p & 0xfe) == 0xc4) {
        return true; /* further maps; maskmovq */
    }
    return p[1] < 0xc0 && ((p[1] & 7) != 4 || end - p < 3 || (p[2] & 7) != 4 || rebased || address_size);
}

/* Is it a far jump or call? */
static inline bool leaves_segment(const uint8_t *bytes, size_t length, unsigned bits)
{
    const uint8_t *p = bytes, *end = bytes + length;

    while (p < end && ((bits == 64 && (*p & 0xf0) == 0x40) || (*p & 0xfc) == 0x64 || (*p & 0xe7) == 0x26)) {
        p++;
    }
    bool direct = p < end && bits == 32 && (*p == 0x9a || *p == 0xea);
    return direct || (end - p > 1 && *p == 0xff && p[1] < 0xc0 && ((p[1] >> 3 & 7) == 3 || (p[1] >> 3 & 7) == 5));
}

/* Does the instruction read CS (mov from CS; push CS, which 64-bit code lacks)? */
static inline bool reads_cs(const uint8_t *bytes, size_t length, unsigned bits)
{
    const uint8_t *p = bytes;

    if (bits == 32 && *p == 0x0e) {
        return true;
    }
    if (bits == 64 && (*p & 0xf0) == 0x40 && length > 1) {
        p++;
    }
    return *p == 0x8c && p + 1 < bytes + length && (p[1] & 0x38) == 0x08;
}

/* Where a far return begins in `bytes`, behind nothing but pops of registers, of which there are `pops`; -1: nowhere. */
static inline int far_return_ahead(const uint8_t *bytes, size_t length, unsigned bits, uint8_t *pops)
{
    size_t at = 0;

    for (*pops = 0; at < length; ++*pops) {
        bool rex = bits == 64 && (bytes[at] & 0xf0) == 0x40 && at + 1 < length;
        uint8_t op = bytes[at + rex];
        if (op == 0xca || op == 0xcb) {
            return (int)at;
        }
        if ((op & 0xf8) != 0x58 || (op == 0x5c && !(rex && bytes[at] & 1))) {
            break;
        }
        at += 1u + rex;
    }
    return -1;
}

/* How many bytes the near return that `bytes` begin with drops behind the return address; -1: it is none. */
static inline int near_return(const uint8_t *bytes, size_t length)
{
    return length && bytes[0] == 0xc3 ? 0 : length > 2 && bytes[0] == 0xc2 ? bytes[1] | bytes[2] << 8 : -1;
}

/* Does the instruction push the constant `value`? */
static inline bool pushes(const uint8_t *bytes, size_t length, uint64_t value, unsigned bits)
{
    int64_t constant;

    if (length == 5 && bytes[0] == 0x68) {
        int32_t wide;
        memcpy(&wide, bytes + 1, sizeof(wide));
        constant = wide;
    } else if (length == 2 && bytes[0] == 0x6a) {
        constant = (int8_t)bytes[1];
    } else {
        return false;
    }
    return bits == 64 ? (uint64_t)constant == value : (uint32_t)constant == (uint32_t)value;
}
