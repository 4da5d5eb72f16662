/*
 * Two sets: addresses at which handlers begin, and blocks of kernel code that were translated.
 *
 * An address that was ever in a gate stays a target for good. One that had been translated as ordinary code before it
 * became a target has blocks without our callback; the caller then has them thrown away. One vCPU may translate at an
 * address while another makes it a target: each says so before it looks for the other, and at least one finds it.
 *
 * Memory may be mapped more than once, and QEMU translates a page for one of its addresses only. So a block counts for all
 * addresses at its offset in a page that show the same bytes.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { PAGE_SIZE = 4096, PAGE_OFFSET = PAGE_SIZE - 1 };
enum { TARGET_SLOTS = 1 << 20, TARGETS = TARGET_SLOTS / 2, TARGET_HINTS = 256 * 64 };
enum { SEEN_LINES = 1 << 15, SEEN_WORDS = 8, SEEN_LOOKS = 4, BLOCK_BYTES = 16 };

typedef bool (*memory_reader)(void *context, uint64_t address, uint8_t *to, size_t length);

/* The first bytes of a block, at most BLOCK_BYTES. */
typedef struct {
    uint64_t start;
    size_t length;
    uint8_t bytes[BLOCK_BYTES];
} block_head;

/* All are static: memory is used only as far as they are. */
static _Atomic uint64_t target_slots[TARGET_SLOTS]; /* open addressing; 0: free */
static _Atomic uint64_t target_hints[TARGET_HINTS / 64]; /* a bit by hash: mostly tells at once that an address is none */
static struct {
    uint64_t address;
    uint32_t next; /* with the same offset in its page, plus 1 */
} target_list[TARGETS];
static _Atomic uint32_t target_first[PAGE_SIZE]; /* in target_list, plus 1 */
static unsigned target_count;
/* What was translated: a Bloom filter. What is known of one key lies in one of the host's cache lines. */
static _Alignas(64) _Atomic uint64_t seen_bits[SEEN_LINES][SEEN_WORDS];

static inline uint64_t target_hash(uint64_t address)
{
    return address * 0x9e3779b97f4a7c15ull >> 32;
}

static inline uint64_t mix(uint64_t value)
{
    value = (value ^ value >> 32) * 0x9e3779b97f4a7c15ull;
    return value ^ value >> 29;
}

/* By its page, or by what can be seen of it at any of its addresses. */
static inline uint64_t key_by_page(uint64_t address)
{
    return mix(mix(address / PAGE_SIZE));
}

static inline uint64_t key_by_bytes(uint64_t address, const uint8_t *bytes, size_t length)
{
    uint64_t words[2] = {0};

    memcpy(words, bytes, length);
    return mix(mix(mix((address & PAGE_OFFSET) << 8 | length) ^ words[0]) ^ words[1]);
}

static inline _Atomic uint64_t *seen_line(uint64_t key)
{
    return seen_bits[key % SEEN_LINES];
}

/* Of the nine bits of `key` that a look takes, three tell the word, and the others its bit. */
static inline unsigned seen_word(uint64_t key, unsigned look)
{
    return key >> (28 + 9 * look) & (SEEN_WORDS - 1);
}

static inline uint64_t seen_bit(uint64_t key, unsigned look)
{
    return 1ull << (key >> (31 + 9 * look) & 63);
}

/* Sometimes true of what was not noted. */
static bool seen_has(uint64_t key)
{
    unsigned look = 0;

    while (look < SEEN_LOOKS && (seen_line(key)[seen_word(key, look)] & seen_bit(key, look))) {
        look++;
    }
    return look == SEEN_LOOKS;
}

/* True if it was not there. */
static bool seen_add(uint64_t key)
{
    bool added = false;

    for (unsigned look = 0; look < SEEN_LOOKS; look++) {
        _Atomic uint64_t *word = &seen_line(key)[seen_word(key, look)];
        added |= !(*word & seen_bit(key, look)) && !(atomic_fetch_or(word, seen_bit(key, look)) & seen_bit(key, look));
    }
    return added;
}

/* A block of kernel code is translated. True if none like it was before. */
static bool note_translated(const block_head *b)
{
    seen_add(key_by_page(b->start));
    return seen_add(key_by_bytes(b->start, b->bytes, b->length));
}

static void forget_translated(void)
{
    memset((void *)seen_bits, 0, sizeof(seen_bits));
}

/* Was a block translated that runs at `address`, too? Sometimes true when none was; where nothing can be read now, if any
 * was in its page. */
static bool was_translated(uint64_t address, memory_reader reader, void *context)
{
    uint8_t bytes[BLOCK_BYTES];
    size_t left = PAGE_SIZE - (address & PAGE_OFFSET), length = sizeof(bytes);

    if (!reader(context, address, bytes, length)) { /* nothing may be mapped behind this page */
        length = left;
        if (left >= sizeof(bytes) || !reader(context, address, bytes, left)) {
            return seen_has(key_by_page(address));
        }
    }
    while (length && !seen_has(key_by_bytes(address, bytes, length))) {
        length--;
    }
    return length;
}

static inline bool is_target(uint64_t address)
{
    uint64_t bit = target_hash(address) % TARGET_HINTS;

    if (!(target_hints[bit / 64] >> bit % 64 & 1)) {
        return false;
    }
    for (uint64_t i = target_hash(address);; i++) {
        uint64_t slot = target_slots[i % TARGET_SLOTS];
        if (slot == address) {
            return address != 0;
        }
        if (slot == 0) {
            return false;
        }
    }
}

/* Is the block that of a target, at that address or another one? */
static bool is_targets_block(const block_head *b, memory_reader reader, void *context)
{
    uint8_t bytes[BLOCK_BYTES];

    if (is_target(b->start)) {
        return true;
    }
    for (uint32_t at = target_first[b->start & PAGE_OFFSET]; at; at = target_list[at - 1].next) {
        if (reader(context, target_list[at - 1].address, bytes, b->length) && memcmp(bytes, b->bytes, b->length) == 0) {
            return true;
        }
    }
    return false;
}

/* Make `address` a target. True if blocks that begin there may exist already and lack our callback. By one vCPU at a time. */
static bool add_target(uint64_t address, memory_reader reader, void *context)
{
    if (address == 0 || is_target(address) || target_count >= TARGETS) {
        return false;
    }
    uint64_t i = target_hash(address);
    while (target_slots[i % TARGET_SLOTS]) {
        i++;
    }
    target_slots[i % TARGET_SLOTS] = address;
    i = target_hash(address) % TARGET_HINTS;
    target_hints[i / 64] |= 1ull << i % 64;
    target_list[target_count].address = address;
    target_list[target_count].next = target_first[address & PAGE_OFFSET];
    target_first[address & PAGE_OFFSET] = ++target_count;
    return was_translated(address, reader, context);
}
