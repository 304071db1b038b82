/* VMX emulated for a guest that is a hypervisor itself: vmcs12, vmcs02, ept02, routing (the Turtles paper). */
#include "vmx.h"

#define POOL02 0x600000ull
#define POOL02_END RAM_OF_SELF
#define CARRY 1ull
#define ZERO 0x40ull
#define STATUS_FLAGS 0x8d5ull

/*
 * One ept02 for each ept12 pointer of late: a guest hypervisor that has a nested guest itself enters with
 * two of them by turns, and to compose anew at each turn would cost more than all else.
 */
#define EPT02S 4
#define POOL02_SIZE ((POOL02_END - POOL02) / EPT02S)
struct ept02 {
    u64 *root;                       /* 0: unused */
    u64 of, next_page, end;
};
static struct ept02 ept02s[EPT02S], *ept02;
static u32 victim;

/* vmcs12 is a page of the guest: a slot for each (width, type, index). Slot 0 is the revision's. */
static u64 *field12(struct child *c, u64 field)
{
    u64 group = (field >> 13 & 3) * 4 + (field >> 10 & 3);
    u64 slot = group * 32 + (field >> 1 & 31);
    u64 *page = guest_memory(c, c->vmcs12);
    return &page[slot ? slot : 32];
}
#define LAUNCH_STATE(c) (((u64 *)guest_memory(c, (c)->vmcs12))[511])

static const u16 other_guest_fields[] = {
    GUEST_DEBUGCTL, GUEST_EFER, 0x280a, 0x280c, 0x280e, 0x2810, INTERRUPTIBILITY, ACTIVITY, 0x482a,
};
static const u16 exit_fields[] = {
    GUEST_PHYSICAL, EXIT_REASON, EXIT_INFO, EXIT_ERROR, IDT_INFO, IDT_ERROR, EXIT_LENGTH, INSTRUCTION_INFO,
    QUALIFICATION, GUEST_LINEAR, ENTRY_CONTROLS, /* whose IA-32e bit an exit updates (SDM 28.3.1) */
};

static void each_guest_field(struct child *c, void (*move)(struct child *, u32))
{
    for (u32 f = GUEST_ES; f <= GUEST_TR; f += 2)
        move(c, f);
    for (u32 f = GUEST_LIMIT; f <= 0x4822; f += 2)
        move(c, f);
    for (u32 f = GUEST_CR0; f <= 0x6826; f += 2)
        move(c, f);
    for (u32 i = 0; i < sizeof other_guest_fields / 2; i++)
        move(c, other_guest_fields[i]);
}
static void to_02(struct child *c, u32 f) { vmwrite(f, *field12(c, f)); }
static void to_12(struct child *c, u32 f) { *field12(c, f) = vmread(f); }

static u64 *allocate02(void)
{
    u64 *page = (u64 *)ept02->next_page;
    ept02->next_page += 4096;
    if (ept02->next_page > ept02->end)
        die("out of pages for ept02", ept02->of);
    return memset(page, 0, 4096);
}

static void drop_ept02s(void)
{
    for (int i = 0; i < EPT02S; i++)
        ept02s[i].root = 0;
    invept_all();
}

static void select_ept02(u64 eptp)
{
    for (ept02 = ept02s; ept02 < ept02s + EPT02S; ept02++)
        if (ept02->root && ept02->of == eptp)
            return;
    u32 n = victim++ % EPT02S;
    ept02 = &ept02s[n];
    *ept02 = (struct ept02){0, eptp, POOL02 + n * POOL02_SIZE, POOL02 + (n + 1) * POOL02_SIZE};
    ept02->root = allocate02();
    invept_all();                    /* mappings of the tables whose pages these were */
}

/* ept02 = ept12 composed with our linear map. Returns 0 where ept12 lacks the entry. */
static int compose(struct child *c, u64 gpa)
{
    u64 *table = guest_memory(c, ept02->of & ~0xfffull);
    u64 permissions = 7;
    for (int shift = 39;; shift -= 9) {
        u64 entry = table[gpa >> shift & 511];
        permissions &= entry;
        if (!(entry & 7))
            return 0;
        if (shift == 12 || (shift == 21 && entry & 0x80)) {
            u64 mask = (1ull << shift) - 1;
            u64 l1_pa = entry & 0xffffffffff000ull & ~mask;
            guest_memory(c, l1_pa);
            map_page(ept02->root, gpa & ~mask, RAM_OF_SELF + l1_pa, shift == 21, permissions, allocate02);
            return 1;
        }
        table = guest_memory(c, entry & 0xffffffffff000ull);
    }
}

static void set_flags(u64 set) { vmwrite(GUEST_RFLAGS, (vmread(GUEST_RFLAGS) & ~STATUS_FLAGS) | set); }

static void fail(struct child *c, u32 error)
{
    if (c->vmcs12 == ~0ull) {
        set_flags(CARRY);
    } else {
        *field12(c, INSTRUCTION_ERROR) = error;
        set_flags(ZERO);
    }
    advance();
}

static void succeed(void)
{
    set_flags(0);
    advance();
}

static void enter_l2(struct child *c, int launch)
{
    if (c->vmcs12 == ~0ull || LAUNCH_STATE(c) == (u64)launch) {
        fail(c, launch ? 4 : 5);
        return;
    }
    advance();
    vmptrld((u64)c->vmcs02);
    each_guest_field(c, to_02);
    select_ept02(*field12(c, EPT_POINTER));
    vmwrite(EPT_POINTER, (u64)ept02->root | 3 << 3 | 6);
    vmwrite(PRIMARY_CONTROLS, *field12(c, PRIMARY_CONTROLS));
    vmwrite(ENTRY_CONTROLS, *field12(c, ENTRY_CONTROLS));
    vmwrite(EXCEPTION_BITMAP, *field12(c, EXCEPTION_BITMAP));
    vmwrite(MSR_BITMAP, (u64)guest_memory(c, *field12(c, MSR_BITMAP)));
    vmwrite(CR0_MASK, *field12(c, CR0_MASK) | 0x20);
    vmwrite(CR4_MASK, *field12(c, CR4_MASK) | 0x2000);
    vmwrite(CR0_SHADOW, *field12(c, CR0_SHADOW));
    vmwrite(CR4_SHADOW, *field12(c, CR4_SHADOW));
    vmwrite(ENTRY_INFO, *field12(c, ENTRY_INFO));
    vmwrite(ENTRY_ERROR, *field12(c, ENTRY_ERROR));
    vmwrite(ENTRY_LENGTH, *field12(c, ENTRY_LENGTH));
    LAUNCH_STATE(c) = 1;
    c->in_l2 = 1;
}

/* The guest hypervisor resumes at its HOST state (SDM 28.5). */
static void load_host12(struct child *c)
{
    vmptrld((u64)c->vmcs01);
    c->in_l2 = 0;
    vmwrite(GUEST_RIP, *field12(c, HOST_RIP));
    vmwrite(GUEST_RSP, *field12(c, HOST_RSP));
    vmwrite(GUEST_RFLAGS, 2);
    vmwrite(GUEST_CR0, *field12(c, HOST_CR0));
    vmwrite(GUEST_CR3, *field12(c, HOST_CR3));
    vmwrite(GUEST_CR4, *field12(c, HOST_CR4));
    vmwrite(GUEST_EFER, *field12(c, HOST_EFER));
    for (int i = 0; i < 6; i++) {
        vmwrite(GUEST_ES + 2 * i, *field12(c, HOST_ES + 2 * i));
        vmwrite(GUEST_ACCESS + 2 * i, i == 1 ? 0xa09b : 0xc093);
        vmwrite(GUEST_LIMIT + 2 * i, 0xffffffff);
        vmwrite(GUEST_BASE + 2 * i, i == 4 ? *field12(c, HOST_FS_BASE) : i == 5 ? *field12(c, HOST_GS_BASE) : 0);
    }
    vmwrite(GUEST_TR, *field12(c, HOST_TR));
    vmwrite(GUEST_BASE + 14, *field12(c, HOST_TR_BASE));
    vmwrite(GUEST_LIMIT + 14, 0x67);
    vmwrite(GUEST_ACCESS + 14, 0x8b);
    vmwrite(GUEST_GDTR_BASE, *field12(c, HOST_GDTR_BASE));
    vmwrite(GUEST_IDTR_BASE, *field12(c, HOST_IDTR_BASE));
    vmwrite(GUEST_GDTR_LIMIT, 0xffff);
    vmwrite(GUEST_IDTR_LIMIT, 0xffff);
    vmwrite(INTERRUPTIBILITY, 0);
    vmwrite(ACTIVITY, 0);
    vmwrite(ENTRY_INFO, 0);
}

static void reflect(struct child *c)
{
    each_guest_field(c, to_12);
    for (u32 i = 0; i < sizeof exit_fields / 2; i++)
        to_12(c, exit_fields[i]);
    *field12(c, ENTRY_INFO) &= ~(u64)INFO_VALID;
    load_host12(c);
}

int nested_exit(struct child *c, u32 reason)
{
    if (reason == EXIT_EPT_VIOLATION && compose(c, vmread(GUEST_PHYSICAL))) {
        u32 vectoring = vmread(IDT_INFO);
        vmwrite(ENTRY_INFO, vectoring & INFO_VALID ? vectoring & ~0x1000u : 0);
        vmwrite(ENTRY_ERROR, vmread(IDT_ERROR));
        vmwrite(ENTRY_LENGTH, vmread(EXIT_LENGTH));
        return 1;
    }
    if (reason == EXIT_EXTERNAL_INTERRUPT)
        c->injected = ticks;                   /* it reaches the guest as this exit */
    reflect(c);
    return 1;
}

void nested_entry_failed(struct child *c)
{
    u64 error = vmread(INSTRUCTION_ERROR);
    vmptrld((u64)c->vmcs01);
    c->in_l2 = 0;
    *field12(c, INSTRUCTION_ERROR) = error;
    set_flags(ZERO);                           /* RIP has already moved past the instruction */
}

u64 nested_capability(u32 msr)
{
    u64 v = rdmsr(msr);
    if (msr == 0x48b)                          /* offered: EPT and unrestricted guest, nothing else */
        return (v & 0xffffffff) | (v & (u64)(SECONDARY_EPT | SECONDARY_UNRESTRICTED) << 32);
    return v;
}

int nested_instruction(struct child *c, u32 reason)
{
    u32 info = vmread(INSTRUCTION_INFO);
    switch (reason) {
    case EXIT_VMXON:
        c->vmx_on = 1;
        succeed();
        return 1;
    case EXIT_VMXOFF:
        c->vmx_on = 0;
        c->vmcs12 = ~0ull;
        succeed();
        return 1;
    case EXIT_VMCLEAR: {
        u64 pa = *(u64 *)guest_memory(c, operand_address(c));
        u64 current = c->vmcs12;
        c->vmcs12 = pa;
        LAUNCH_STATE(c) = 0;
        c->vmcs12 = current == pa ? ~0ull : current;
        succeed();
        return 1;
    }
    case EXIT_VMPTRLD: {
        u64 pa = *(u64 *)guest_memory(c, operand_address(c));
        if (*(u32 *)guest_memory(c, pa) != (rdmsr(0x480) & 0x7fffffff)) {
            fail(c, 11);
            return 1;
        }
        c->vmcs12 = pa;
        succeed();
        return 1;
    }
    case EXIT_VMREAD:
    case EXIT_VMWRITE: {
        if (c->vmcs12 == ~0ull || !(info >> 10 & 1)) {
            if (c->vmcs12 != ~0ull)
                die("VMREAD and VMWRITE are expected with registers", info);
            fail(c, 0);
            return 1;
        }
        u64 *field = field12(c, read_register(c, info >> 28));
        if (reason == EXIT_VMREAD)
            write_register(c, info >> 3 & 15, *field);
        else
            *field = read_register(c, info >> 3 & 15);
        succeed();
        return 1;
    }
    case EXIT_VMLAUNCH:
    case EXIT_VMRESUME:
        enter_l2(c, reason == EXIT_VMLAUNCH);
        return 1;
    case EXIT_INVEPT:
        drop_ept02s();
        succeed();
        return 1;
    default:
        return 0;
    }
}
