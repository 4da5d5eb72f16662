/*
 * Address spaces. The upper half is the kernel's, the same everywhere and for the supervisor only; the
 * lower half belongs to a process and is filled page by page, on first touch.
 */
#include "kernel.h"

#define PTE_PRESENT 1
#define PTE_WRITE 2
#define PTE_USER 4
#define ADDRESS(entry) ((entry) & 0x000ffffffffff000)

extern u64 boot_pml4[512], boot_pd[512];
extern struct kernel_stack stacks_start[], stacks_end[]; /* all that are linked into section .bss.stacks */
extern char kernel_end[];
extern char user_text_load[], user_data_load[]; /* physical addresses of the user image */
extern char user_text_size[], user_data_size[];

static u64 next_page; /* physical; pages below it were handed out */
static u64 free_list; /* physical address of a page given back, whose first word links to the next */
static spinlock page_lock;

/* A zeroed page; its physical address. */
static u64 alloc_page(void)
{
    u64 page, count, *words;
    u64 flags = irq_save();
    lock(&page_lock);
    page = free_list;
    if (page) {
        free_list = *(u64 *)virt(page);
    } else {
        page = next_page;
        next_page += PAGE_SIZE;
    }
    unlock(&page_lock);
    irq_restore(flags);
    words = virt(page);
    count = PAGE_SIZE / 8;
    __asm__ volatile("rep stosq" : "+D"(words), "+c"(count) : "a"(0) : "memory");
    return page;
}

static void free_page(u64 page)
{
    u64 flags = irq_save();
    lock(&page_lock);
    *(u64 *)virt(page) = free_list;
    free_list = page;
    unlock(&page_lock);
    irq_restore(flags);
}

/* The kernel's first 2 MB get 4 KB pages, and the stacks' guard pages go. */
void paging_init(void)
{
    static u64 table[512] __attribute__((aligned(PAGE_SIZE)));
    u64 end = phys(kernel_end);

    if (end > sizeof table / 8 * PAGE_SIZE)
        panic("the kernel is too big: %x", end);
    for (u64 i = 0; i < 512; i++)
        table[i] = i * PAGE_SIZE | PTE_PRESENT | PTE_WRITE;
    for (struct kernel_stack *s = stacks_start; s < stacks_end; s++)
        table[phys(s->guard) / PAGE_SIZE] = 0;
    boot_pd[0] = phys(table) | PTE_PRESENT | PTE_WRITE;
    flush_tlb();
    next_page = (end + PAGE_SIZE - 1) & ~(u64)(PAGE_SIZE - 1);
}

/* The first GB at 0 was there for start-up code and trampoline. */
void drop_identity_map(void)
{
    boot_pml4[0] = 0;
    flush_tlb();
}

u64 kernel_address_space(void) { return phys(boot_pml4); }

u64 new_address_space(void)
{
    u64 pml4 = alloc_page();
    ((u64 *)virt(pml4))[511] = boot_pml4[511];
    return pml4;
}

/* The page table entry for a user address, with the tables above it; 0 if one is missing and !create. */
static u64 *find_entry(u64 cr3, u64 address, int create)
{
    u64 *table = virt(cr3);
    for (int shift = 39; shift > 12; shift -= 9) {
        u64 *entry = &table[address >> shift & 511];
        if (!(*entry & PTE_PRESENT)) {
            if (!create)
                return 0;
            *entry = alloc_page() | PTE_PRESENT | PTE_WRITE | PTE_USER;
        }
        table = virt(ADDRESS(*entry));
    }
    return &table[address >> 12 & 511];
}

static int within(u64 address, u64 start, u64 size) { return address - start < size; }

/* A copy of a page of the user image's data. */
static u64 copy_of_data(u64 offset)
{
    u64 page = alloc_page();
    const u64 *from = virt((u64)user_data_load + offset);
    u64 *to = virt(page);
    for (u32 i = 0; i < PAGE_SIZE / 8; i++)
        to[i] = from[i];
    return page;
}

/* First touch of a user page: map it. 0 if there is nothing at that address. */
int demand_page(u64 cr3, u64 address)
{
    u64 page = address & ~(u64)(PAGE_SIZE - 1);
    u64 entry;

    if (within(page, USER_TEXT, (u64)user_text_size))
        entry = (u64)user_text_load + (page - USER_TEXT);
    else if (within(page, USER_DATA, (u64)user_data_size))
        entry = copy_of_data(page - USER_DATA) | PTE_WRITE;
    else if (within(page, USER_HEAP, USER_HEAP_SIZE) || within(page, USER_STACK, USER_STACK_SIZE) ||
             within(page, USER_TLS, 0x100000))
        entry = alloc_page() | PTE_WRITE;
    else
        return 0;
    *find_entry(cr3, page, 1) = entry | PTE_PRESENT | PTE_USER;
    return 1;
}

void unmap_page(u64 cr3, u64 address)
{
    u64 *entry = find_entry(cr3, address, 0);
    u64 old;
    if (!entry || !(*entry & PTE_PRESENT))
        return;
    old = ADDRESS(*entry);
    *entry = 0;
    __asm__ volatile("invlpg (%0)" ::"r"(address) : "memory");
    free_page(old);
}
