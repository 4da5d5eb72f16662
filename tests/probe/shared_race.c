/*
 * What vCPUs and the reader share beside ring and ledger, under threads that do nothing else.
 *
 *     shared_race targets|frames|watches|rows RING
 *
 * targets  one vCPU translates at an address while another makes it a target, or another one of the same memory: one of
 *          them must see the other
 * frames   two frames that share a place are live in turn; a store that changes nothing of either is no change
 * watches  the reader changes the table of watched ranges all the time; a range that is in all of them is watched
 * rows     (one thread) a row that is begun twice displaces one
 *
 * The exit status is 0 when all was right.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdbool.h>

#include "ring.h"
#include "frames.h"
#include "idt.h"

enum { LAPS = 10, ADDRESSES = 4096, PUSHES = 400000, CHANGES = 20000 };

static atomic_uint wrong;
static atomic_bool done;

static void in_parallel(void *(*one)(void *), void *(*other)(void *))
{
    pthread_t threads[2];

    pthread_create(&threads[0], NULL, one, NULL);
    pthread_create(&threads[1], NULL, other, NULL);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
}

static bool translated[ADDRESSES], stale[ADDRESSES];
static atomic_uint at_address;

static uint64_t address_of(unsigned n)
{
    return 0xffffffff81000000ull + n * 16ull;
}

/* Memory shows the address, without the bit that tells the two mappings apart. */
enum { OTHER_MAPPING = 1 << 30 };

static bool read_address(void *unused, uint64_t address, uint8_t *to, size_t length)
{
    uint64_t words[2] = {address & ~(uint64_t)OTHER_MAPPING, 0};

    (void)unused;
    memcpy(to, words, length);
    return true;
}

/* Side by side: each waits until the other has come to the address, too. */
static void meet(unsigned n)
{
    atomic_fetch_add(&at_address, 1);
    while (atomic_load(&at_address) < 2 * (n + 1)) {
    }
}

static void *translate(void *unused)
{
    for (unsigned n = 0; n < ADDRESSES; n++) {
        block_head head = {.start = address_of(n) ^ (n % 2 ? OTHER_MAPPING : 0), .length = 8};
        read_address(NULL, head.start, head.bytes, head.length);
        meet(n);
        note_translated(&head);
        translated[n] = !is_targets_block(&head, read_address, NULL);
    }
    return unused;
}

static void *add_targets(void *unused)
{
    for (unsigned n = 0; n < ADDRESSES; n++) {
        meet(n);
        pthread_mutex_lock(&idt_lock);
        stale[n] = add_target(address_of(n), read_address, NULL);
        pthread_mutex_unlock(&idt_lock);
    }
    return unused;
}

static void race_targets(void)
{
    for (unsigned lap = 0; lap < LAPS; lap++) {
        memset((void *)target_slots, 0, sizeof(target_slots));
        memset((void *)target_hints, 0, sizeof(target_hints));
        memset((void *)target_first, 0, sizeof(target_first));
        target_count = 0;
        forget_translated();
        at_address = 0;
        in_parallel(translate, add_targets);
        for (unsigned n = 0; n < ADDRESSES; n++) {
            wrong += translated[n] && !stale[n];
        }
    }
}

static ctx_row large, small;

/* A frame of five words of 8 bytes, and one of three of 4, in one place of the table. */
static void *push_frames(void *unused)
{
    for (unsigned n = 0; n < PUSHES; n++) {
        frame_pushed(&small);
        frame_pushed(&large);
    }
    atomic_store(&done, true);
    return unused;
}

static void *store_the_same(void *unused)
{
    while (!atomic_load(&done)) {
        wrong += frame_changed_by(large.frame + 16, 1, 8, large.frame - 256) != 0;
    }
    return unused;
}

static void race_frames(void)
{
    large = (ctx_row){.frame = 0xffffffff81000fd8, .mode = 64, .stack = {1, 1, 1, 1, 1}};
    small = (ctx_row){.frame = large.frame, .mode = 32, .flags = CTX_FLAG_NO_STACK, .stack = {2, 2, 2}};
    do {
        small.frame += 64;
    } while (frame_place(small.frame) != frame_place(large.frame));
    in_parallel(push_frames, store_the_same);
}

static ring shared;
static uint64_t always = 0xffffffff81400000;

/* As gdbext/sources/probe.py does it. The range comes first or last. */
static void *change_watches(void *unused)
{
    for (unsigned n = 0; n < CHANGES; n++) {
        uint32_t next = shared.header->watch_active + 1, low = n / 2 % 2 ? 0 : RING_WATCH_RANGES - 1;
        ring_watch *w = &shared.watch[next & 1];
        for (uint32_t i = 0; i < RING_WATCH_RANGES; i++) {
            w->lo[i] = always + ((uint64_t)i - low) * 64;
            w->hi[i] = w->lo[i] + 8;
        }
        memset(w->bits, 0xff, sizeof(w->bits));
        shared.header->watch_count[next & 1] = RING_WATCH_RANGES;
        atomic_store_explicit(SHARED(shared.header->watch_active, uint32_t), next, memory_order_release);
    }
    atomic_store(&done, true);
    return unused;
}

static void *store_there(void *unused)
{
    while (!atomic_load(&done)) {
        wrong += shared.header->watch_active && !ring_watches(&shared, always, 8);
    }
    return unused;
}

static void count_displaced(void)
{
    enum { ROWS = 100, RING = 64 };

    for (unsigned n = 0; n < ROWS; n++) {
        ring_reserve(&shared, 0);
        ring_reserve(&shared, 0);
        ring_publish(&shared, 0);
    }
    wrong += ring_cpu(&shared, 0)->overwritten != ROWS - RING;
}

int main(int argc, char **argv)
{
    if (argc != 3 || !ring_open(&shared, argv[2], 1, 64, 0, 0)) {
        return 2;
    }
    switch (argv[1][0]) {
    case 't': race_targets(); break;
    case 'f': race_frames(); break;
    case 'r': count_displaced(); break;
    default: in_parallel(change_watches, store_there);
    }
    if (wrong) {
        fprintf(stderr, "shared_race: %u wrong\n", (unsigned)wrong);
    }
    return wrong != 0;
}
