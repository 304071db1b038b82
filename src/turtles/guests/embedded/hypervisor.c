/* The embedded hypervisor: VMX set-up, the run loop, and the exits of a guest that is not nested. */
#include "vmx.h"

#define POOL 0x400000ull
#define BOOT_INFO 0x9000ull
#define COMMAND_LINE 0x9100ull

static u64 pool_next = POOL;
static struct child child;
static u8 msr_bitmap[4096] __attribute__((aligned(4096)));
static u64 lazy_pages;
static u64 *ept01;

u64 *allocate_page(void)
{
    u64 *page = (u64 *)pool_next;
    pool_next += 4096;
    if (pool_next > PRISTINE * 3)
        die("out of pages", pool_next);
    return memset(page, 0, 4096);
}

u64 *map_page(u64 *table, u64 gpa, u64 hpa, int large, u64 permissions, u64 *(*allocate)(void))
{
    for (int shift = 39;; shift -= 9) {
        u64 *entry = &table[gpa >> shift & 511];
        if (shift == (large ? 21 : 12)) {
            *entry = hpa | permissions | 6 << 3 | (large ? 1 << 7 : 0);   /* write-back */
            return entry;
        }
        if (!*entry)
            *entry = (u64)allocate() | 7;
        table = (u64 *)(*entry & ~0xfffull);
    }
}

void *guest_memory(struct child *c, u64 gpa)
{
    if (gpa >= c->ram - 4096)
        die("the guest names memory that it does not have", gpa);
    return (void *)(RAM_OF_SELF + gpa);
}

u64 read_register(struct child *c, int n) { return n == 4 ? vmread(GUEST_RSP) : c->regs.r[n]; }

void write_register(struct child *c, int n, u64 v)
{
    if (n == 4)
        vmwrite(GUEST_RSP, v);
    else
        c->regs.r[n] = v;
}

u64 operand_address(struct child *c)
{
    u32 info = vmread(INSTRUCTION_INFO);
    u64 address = vmread(QUALIFICATION);
    if (!(info >> 27 & 1))
        address += read_register(c, info >> 23 & 15);
    if (!(info >> 22 & 1))
        address += read_register(c, info >> 18 & 15) << (info & 3);
    return address;
}

void advance(void)
{
    vmwrite(GUEST_RIP, vmread(GUEST_RIP) + vmread(EXIT_LENGTH));
    vmwrite(INTERRUPTIBILITY, vmread(INTERRUPTIBILITY) & ~3ull);
}

void write_controls(u64 field, u32 msr, u32 want)
{
    u64 allowed = rdmsr(msr);
    u32 value = (want | (u32)allowed) & (u32)(allowed >> 32);
    if (want & ~value)
        die("the processor lacks a control of VMCS field", field);
    vmwrite(field, value);
}

static void write_host_state(void)
{
    struct { u16 limit; u64 base; } __attribute__((packed)) gdtr, idtr;
    asm volatile("sgdt %0; sidt %1" : "=m"(gdtr), "=m"(idtr));
    vmwrite(HOST_CS, 8);
    for (int f = HOST_ES; f <= HOST_GS; f += 2)
        if (f != HOST_CS)
            vmwrite(f, 16);
    vmwrite(HOST_TR, 24);
    vmwrite(HOST_CR0, READ_CR(0));
    vmwrite(HOST_CR3, READ_CR(3));
    vmwrite(HOST_CR4, READ_CR(4));
    vmwrite(HOST_FS_BASE, 0);
    vmwrite(HOST_GS_BASE, 0);
    extern u8 tss[];
    vmwrite(HOST_TR_BASE, (u64)tss);
    vmwrite(HOST_GDTR_BASE, gdtr.base);
    vmwrite(HOST_IDTR_BASE, idtr.base);
    vmwrite(HOST_EFER, rdmsr(0xc0000080));
    vmwrite(HOST_RIP, (u64)vm_exited);
}

/* Every VMCS of ours has this; nested.c adds what the guest hypervisor asks for. */
static void write_common(u64 *vmcs)
{
    if (vmclear((u64)vmcs) || vmptrld((u64)vmcs))
        die("VMCLEAR or VMPTRLD failed", (u64)vmcs);
    write_controls(PIN_CONTROLS, 0x48d, PIN_EXTERNAL_INTERRUPT);
    write_controls(EXIT_CONTROLS, 0x48f, EXIT_HOST_64 | EXIT_ACKNOWLEDGE | EXIT_SAVE_EFER | EXIT_LOAD_EFER);
    write_controls(SECONDARY_CONTROLS, 0x48b, SECONDARY_EPT | SECONDARY_UNRESTRICTED);
    write_controls(PRIMARY_CONTROLS, 0x48e, PRIMARY_HLT | PRIMARY_IO | PRIMARY_MSR_BITMAP | PRIMARY_SECONDARY);
    write_controls(ENTRY_CONTROLS, 0x490, ENTRY_LOAD_EFER);
    vmwrite(MSR_BITMAP, (u64)msr_bitmap);
    vmwrite(LINK_POINTER, ~0ull);
    write_host_state();
}

static void write_initial_state(void)
{
    for (int i = 0; i < 8; i++) {
        vmwrite(GUEST_ES + 2 * i, 0);
        vmwrite(GUEST_BASE + 2 * i, 0);
        vmwrite(GUEST_LIMIT + 2 * i, 0xffffffff);
        vmwrite(GUEST_ACCESS + 2 * i, i == 1 ? 0xc09b : i == 6 ? 0x10082 : i == 7 ? 0x8b : 0xc093);
    }
    vmwrite(GUEST_CS, 8);
    vmwrite(GUEST_LIMIT + 2 * 7, 0xffff);
    vmwrite(GUEST_GDTR_BASE, 0);
    vmwrite(GUEST_GDTR_LIMIT, 0);
    vmwrite(GUEST_IDTR_BASE, 0);
    vmwrite(GUEST_IDTR_LIMIT, 0);
    vmwrite(GUEST_CR0, 0x31);                          /* PE, ET, NE: protected mode, no paging */
    vmwrite(GUEST_CR3, 0);
    vmwrite(GUEST_CR4, 0x2000);
    vmwrite(CR0_MASK, 0x20);
    vmwrite(CR0_SHADOW, 0x31);
    vmwrite(CR4_MASK, 0x2000);                         /* the guest does not see our CR4.VMXE */
    vmwrite(CR4_SHADOW, 0);
    vmwrite(GUEST_EFER, 0);
    vmwrite(GUEST_DEBUGCTL, 0);
    vmwrite(GUEST_DR7, 0x400);
    vmwrite(GUEST_RFLAGS, 2);
    vmwrite(GUEST_RSP, 0);
    vmwrite(INTERRUPTIBILITY, 0);
    vmwrite(ACTIVITY, 0);
    vmwrite(EXCEPTION_BITMAP, 0);
}

static void load_guest(int depth)
{
    extern u8 image_start[], image_end[], _start[];
    memcpy((void *)(RAM_OF_SELF + (u64)image_start), (void *)PRISTINE, image_end - image_start);
    u32 *info = (u32 *)(RAM_OF_SELF + BOOT_INFO);
    info[0] = 1 | 4;
    info[1] = 639;
    info[2] = (child.ram - 0x100000) / 1024;
    info[4] = COMMAND_LINE;
    char *line = (char *)(RAM_OF_SELF + COMMAND_LINE);
    memcpy(line, "depth=0 level=0 loops=0", 24);
    line[6] += depth - 1;
    line[14] += level + 1;
    line[22] += loops;
    child.regs.r[0] = 0x2badb002;
    child.regs.r[3] = BOOT_INFO;
    vmwrite(GUEST_RIP, (u64)_start);
}

static void inject_if_due(void)
{
    struct child *c = &child;
    if (c->in_l2 || ticks == c->injected)
        return;
    u32 primary = vmread(PRIMARY_CONTROLS);
    int open = vmread(GUEST_RFLAGS) & 0x200 && !(vmread(INTERRUPTIBILITY) & 3) && !(vmread(ENTRY_INFO) & INFO_VALID);
    if (open) {
        vmwrite(ENTRY_INFO, INFO_VALID | TIMER_VECTOR);
        c->injected = ticks;
    }
    vmwrite(PRIMARY_CONTROLS, open ? primary & ~PRIMARY_INTERRUPT_WINDOW : primary | PRIMARY_INTERRUPT_WINDOW);
}

static void on_cpuid(struct child *c)
{
    u32 r[4], leaf = c->regs.r[0];
    cpuid(leaf, c->regs.r[1], r);
    if (leaf == 0x40000000) {
        memcpy(&r[1], "TurtlesLevel", 12);
    }
    if (leaf == 1)
        r[2] |= 1u << 5 | 1u << 31;                    /* VMX; a hypervisor is present */
    c->regs.r[0] = r[0];
    c->regs.r[3] = r[1];
    c->regs.r[1] = r[2];
    c->regs.r[2] = r[3];
    advance();
}

/* Returns the guest's result when it reports one, else -1. */
static int on_io(struct child *c)
{
    u64 q = vmread(QUALIFICATION);
    u16 port = q >> 16;
    if (q & 0x37 & ~8)
        die("only single-byte port accesses are expected", q);
    if (q & 8) {
        c->regs.r[0] = (c->regs.r[0] & ~0xffull) | inb(port);
    } else if (port == PORT_DONE) {
        return c->regs.r[0] & 0xff;
    } else {
        outb(port, c->regs.r[0]);
    }
    advance();
    return -1;
}

static void on_msr(struct child *c, int write)
{
    u32 msr = c->regs.r[1];
    if (!write) {
        u64 v = msr == 0x3a ? 5 : nested_capability(msr);
        c->regs.r[0] = (u32)v;
        c->regs.r[2] = v >> 32;
    }
    advance();
}

static void on_cr4(struct child *c)
{
    u64 q = vmread(QUALIFICATION);
    if ((q & 0x3f) != 4)
        die("unexpected control-register access", q);
    u64 v = read_register(c, q >> 8 & 15);
    vmwrite(CR4_SHADOW, v);
    vmwrite(GUEST_CR4, v | 0x2000);
    advance();
}

static void on_ept_violation(void)
{
    u64 gpa = vmread(GUEST_PHYSICAL);
    if (gpa < LAZY_WINDOW || gpa >= LAZY_WINDOW + LAZY_PAGES * 4096)
        die("EPT violation outside the lazy window", gpa);
    map_page(ept01, gpa & ~0xfffull, (u64)allocate_page(), 0, 7, allocate_page);
    lazy_pages++;
}

static void on_hlt(struct child *c)
{
    advance();
    while (ticks == c->injected)
        wait_for_interrupt();
}

static void check_guest_memory(struct child *c, u64 ram_end)
{
    if (c->ram < 0x400000)
        die("too little memory for a guest", ram_end);
}

u64 run_hypervisor(u64 ram_end, int depth)
{
    struct child *c = &child;
    c->ram = ram_end > RAM_OF_SELF ? ram_end - RAM_OF_SELF : 0;
    c->vmcs12 = ~0ull;
    c->injected = ticks;
    check_guest_memory(c, ram_end);
    u32 r[4];
    cpuid(1, 0, r);
    if (!(r[2] >> 5 & 1))
        die("the processor has no VMX", r[2]);
    u64 basic = rdmsr(0x480);
    if (!(rdmsr(0x3a) & 1))
        wrmsr(0x3a, 5);
    WRITE_CR(4, READ_CR(4) | 0x2000);
    u64 *region = allocate_page();
    *(u32 *)region = basic & 0x7fffffff;
    if (vmxon((u64)region))
        die("VMXON failed", 0);
    c->vmcs01 = allocate_page();
    c->vmcs02 = allocate_page();
    *(u32 *)c->vmcs01 = *(u32 *)c->vmcs02 = basic & 0x7fffffff;
    ept01 = allocate_page();
    for (u64 g = 0; g < c->ram; g += 0x200000)
        map_page(ept01, g, RAM_OF_SELF + g, 1, 7, allocate_page);
    for (u32 m = 0x480; m < 0x492; m++)
        msr_bitmap[m / 8] |= 1 << m % 8, msr_bitmap[2048 + m / 8] |= 1 << m % 8;
    msr_bitmap[0x3a / 8] |= 1 << 0x3a % 8;
    msr_bitmap[2048 + 0x3a / 8] |= 1 << 0x3a % 8;
    write_common(c->vmcs02);
    write_common(c->vmcs01);
    vmwrite(EPT_POINTER, (u64)ept01 | 3 << 3 | 6);
    write_initial_state();
    load_guest(depth);
    if (loops)
        run_vmcs_loops();
    print("starts level %u with %u MiB\n", (u64)level + 1, c->ram >> 20);

    int result = -1;
    while (result < 0) {
        inject_if_due();
        int *launched = c->in_l2 ? &c->launched02 : &c->launched01;
        if (vm_run(&c->regs, *launched)) {
            if (!c->in_l2)
                die("VM entry failed with error", vmread(INSTRUCTION_ERROR));
            nested_entry_failed(c);
            continue;
        }
        *launched = 1;
        u32 reason = vmread(EXIT_REASON);
        if (reason >> 31 && !c->in_l2)
            die("VM entry failed: guest state, reason", reason);
        c->counts[reason & 63]++;
        u32 vectoring = vmread(IDT_INFO);
        if (reason == EXIT_EXTERNAL_INTERRUPT)
            on_tick();
        if (c->in_l2 && nested_exit(c, reason))
            continue;
        if (vectoring & INFO_VALID) {                  /* deliver again what this exit cut short */
            vmwrite(ENTRY_INFO, vectoring & ~0x1000u);
            vmwrite(ENTRY_ERROR, vmread(IDT_ERROR));
            vmwrite(ENTRY_LENGTH, vmread(EXIT_LENGTH));
        }
        switch (reason) {
        case EXIT_EXTERNAL_INTERRUPT:
        case EXIT_INTERRUPT_WINDOW: break;
        case EXIT_CPUID: on_cpuid(c); break;
        case EXIT_HLT: on_hlt(c); break;
        case EXIT_IO: result = on_io(c); break;
        case EXIT_RDMSR:
        case EXIT_WRMSR: on_msr(c, reason == EXIT_WRMSR); break;
        case EXIT_CR: on_cr4(c); break;
        case EXIT_EPT_VIOLATION: on_ept_violation(); break;
        default:
            if (!nested_instruction(c, reason)) {
                print("guest rip %x qualification %x\n", vmread(GUEST_RIP), vmread(QUALIFICATION));
                die("unexpected exit", reason);
            }
        }
    }
    print("exits: cpuid %u, io %u, ept violation %u, interrupt %u, hlt %u, vmread %u, vmwrite %u, vm entry %u\n",
          c->counts[EXIT_CPUID], c->counts[EXIT_IO], c->counts[EXIT_EPT_VIOLATION],
          c->counts[EXIT_EXTERNAL_INTERRUPT], c->counts[EXIT_HLT], c->counts[EXIT_VMREAD],
          c->counts[EXIT_VMWRITE], c->counts[EXIT_VMLAUNCH] + c->counts[EXIT_VMRESUME]);
    if (result)
        print("the guest failed with %u\n", (u64)result);
    asm volatile("vmxoff");
    return result;
}
