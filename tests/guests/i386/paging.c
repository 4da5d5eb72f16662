/*
 * Address spaces. The last GB is the kernel's, the same everywhere and for the supervisor only; the rest
 * belongs to a process and is filled page by page, on first touch.
 */
#include "kernel.h"

#define PTE_PRESENT 1
#define PTE_WRITE 2
#define PTE_USER 4
#define ADDRESS(entry) ((entry) & 0xfffff000)
#define ENTRIES 1024

extern u32 boot_pd[ENTRIES];
extern struct kernel_stack stacks_start[], stacks_end[]; /* all that are linked into section .bss.stacks */
extern char kernel_end[];
extern char user_text_load[], user_data_load[]; /* physical addresses of the user image */
extern char user_text_size[], user_data_size[];

static u32 next_page; /* physical; pages below it were handed out */
static u32 free_list; /* physical address of a page given back, whose first word links to the next */

/* A zeroed page; its physical address. */
static u32 alloc_page(void)
{
    u32 page, count = ENTRIES, *words;
    u32 flags = irq_save();
    page = free_list;
    if (page) {
        free_list = *(u32 *)virt(page);
    } else {
        page = next_page;
        next_page += PAGE_SIZE;
    }
    irq_restore(flags);
    words = virt(page);
    __asm__ volatile("rep stosl" : "+D"(words), "+c"(count) : "a"(0) : "memory");
    return page;
}

static void free_page(u32 page)
{
    u32 flags = irq_save();
    *(u32 *)virt(page) = free_list;
    free_list = page;
    irq_restore(flags);
}

/* The kernel's first 4 MB get 4 KB pages, and the stacks' guard pages go. */
void paging_init(void)
{
    static u32 table[ENTRIES] __attribute__((aligned(PAGE_SIZE)));
    u32 end = phys(kernel_end);

    if (end > ENTRIES * PAGE_SIZE)
        panic("the kernel is too big: %x", end);
    for (u32 i = 0; i < ENTRIES; i++)
        table[i] = i * PAGE_SIZE | PTE_PRESENT | PTE_WRITE;
    for (struct kernel_stack *s = stacks_start; s < stacks_end; s++)
        table[phys(s->guard) / PAGE_SIZE] = 0;
    boot_pd[KERNEL_BASE >> 22] = phys(table) | PTE_PRESENT | PTE_WRITE;
    flush_tlb();
    next_page = (end + PAGE_SIZE - 1) & ~(u32)(PAGE_SIZE - 1);
}

/* Memory at 0 was there for start-up code. */
void drop_identity_map(void)
{
    for (u32 i = 0; i < KERNEL_BASE >> 22; i++)
        boot_pd[i] = 0;
    flush_tlb();
}

u32 kernel_address_space(void) { return phys(boot_pd); }

u32 new_address_space(void)
{
    u32 pd = alloc_page();
    for (u32 i = KERNEL_BASE >> 22; i < ENTRIES; i++)
        ((u32 *)virt(pd))[i] = boot_pd[i];
    return pd;
}

/* The page table entry for a user address; 0 if there is no table for it and !create. */
static u32 *find_entry(u32 cr3, u32 address, int create)
{
    u32 *directory = virt(cr3), *entry = &directory[address >> 22];
    if (!(*entry & PTE_PRESENT)) {
        if (!create)
            return 0;
        *entry = alloc_page() | PTE_PRESENT | PTE_WRITE | PTE_USER;
    }
    return (u32 *)virt(ADDRESS(*entry)) + (address >> 12) % ENTRIES;
}

static int within(u32 address, u32 start, u32 size) { return address - start < size; }

/* A copy of a page of the user image's data. */
static u32 copy_of_data(u32 offset)
{
    u32 page = alloc_page();
    const u32 *from = virt((u32)user_data_load + offset);
    u32 *to = virt(page);
    for (u32 i = 0; i < ENTRIES; i++)
        to[i] = from[i];
    return page;
}

/* First touch of a user page: map it. 0 if there is nothing at that address. */
int demand_page(u32 cr3, u32 address)
{
    u32 page = address & ~(u32)(PAGE_SIZE - 1);
    u32 entry;

    if (within(page, USER_TEXT, (u32)user_text_size))
        entry = (u32)user_text_load + (page - USER_TEXT);
    else if (within(page, USER_DATA, (u32)user_data_size))
        entry = copy_of_data(page - USER_DATA) | PTE_WRITE;
    else if (within(page, USER_HEAP, USER_HEAP_SIZE) || within(page, USER_STACK, USER_STACK_SIZE) ||
             within(page, USER_TLS, 0x100000))
        entry = alloc_page() | PTE_WRITE;
    else
        return 0;
    *find_entry(cr3, page, 1) = entry | PTE_PRESENT | PTE_USER;
    return 1;
}

void unmap_page(u32 cr3, u32 address)
{
    u32 *entry = find_entry(cr3, address, 0);
    u32 old;
    if (!entry || !(*entry & PTE_PRESENT))
        return;
    old = ADDRESS(*entry);
    *entry = 0;
    __asm__ volatile("invlpg (%0)" ::"r"(address) : "memory");
    free_page(old);
}
