/* VMX instructions, and the encodings of the VMCS fields that the embedded hypervisor uses (SDM app. B). */
#ifndef VMX_H
#define VMX_H
#include "machine.h"

enum {
    VPID = 0x0000, GUEST_ES = 0x0800, GUEST_CS = 0x0802, GUEST_SS = 0x0804, GUEST_TR = 0x080e,
    HOST_ES = 0x0c00, HOST_CS = 0x0c02, HOST_SS = 0x0c04, HOST_DS = 0x0c06, HOST_FS = 0x0c08,
    HOST_GS = 0x0c0a, HOST_TR = 0x0c0c,
    MSR_BITMAP = 0x2004, EPT_POINTER = 0x201a, GUEST_PHYSICAL = 0x2400, LINK_POINTER = 0x2800,
    GUEST_DEBUGCTL = 0x2802, GUEST_PAT = 0x2804, GUEST_EFER = 0x2806, HOST_EFER = 0x2c02,
    PIN_CONTROLS = 0x4000, PRIMARY_CONTROLS = 0x4002, EXCEPTION_BITMAP = 0x4004, EXIT_CONTROLS = 0x400c,
    ENTRY_CONTROLS = 0x4012, ENTRY_INFO = 0x4016, ENTRY_ERROR = 0x4018, ENTRY_LENGTH = 0x401a,
    SECONDARY_CONTROLS = 0x401e, INSTRUCTION_ERROR = 0x4400, EXIT_REASON = 0x4402, EXIT_INFO = 0x4404,
    EXIT_ERROR = 0x4406, IDT_INFO = 0x4408, IDT_ERROR = 0x440a, EXIT_LENGTH = 0x440c,
    INSTRUCTION_INFO = 0x440e, GUEST_LIMIT = 0x4800, GUEST_GDTR_LIMIT = 0x4810, GUEST_IDTR_LIMIT = 0x4812,
    GUEST_ACCESS = 0x4814, INTERRUPTIBILITY = 0x4824, ACTIVITY = 0x4826,
    CR0_MASK = 0x6000, CR4_MASK = 0x6002, CR0_SHADOW = 0x6004, CR4_SHADOW = 0x6006,
    QUALIFICATION = 0x6400, GUEST_LINEAR = 0x640a,
    GUEST_CR0 = 0x6800, GUEST_CR3 = 0x6802, GUEST_CR4 = 0x6804, GUEST_BASE = 0x6806,
    GUEST_GDTR_BASE = 0x6816, GUEST_IDTR_BASE = 0x6818, GUEST_DR7 = 0x681a, GUEST_RSP = 0x681c,
    GUEST_RIP = 0x681e, GUEST_RFLAGS = 0x6820,
    HOST_CR0 = 0x6c00, HOST_CR3 = 0x6c02, HOST_CR4 = 0x6c04, HOST_FS_BASE = 0x6c06, HOST_GS_BASE = 0x6c08,
    HOST_TR_BASE = 0x6c0a, HOST_GDTR_BASE = 0x6c0c, HOST_IDTR_BASE = 0x6c0e, HOST_RSP = 0x6c14,
    HOST_RIP = 0x6c16,
};

enum {
    EXIT_EXCEPTION = 0, EXIT_EXTERNAL_INTERRUPT = 1, EXIT_TRIPLE_FAULT = 2, EXIT_INTERRUPT_WINDOW = 7,
    EXIT_CPUID = 10, EXIT_HLT = 12, EXIT_VMCALL = 18, EXIT_VMCLEAR = 19, EXIT_VMLAUNCH = 20,
    EXIT_VMPTRLD = 21, EXIT_VMPTRST = 22, EXIT_VMREAD = 23, EXIT_VMRESUME = 24, EXIT_VMWRITE = 25,
    EXIT_VMXOFF = 26, EXIT_VMXON = 27, EXIT_CR = 28, EXIT_IO = 30, EXIT_RDMSR = 31, EXIT_WRMSR = 32,
    EXIT_EPT_VIOLATION = 48, EXIT_INVEPT = 50, EXIT_REASONS = 70,
};

#define PIN_EXTERNAL_INTERRUPT (1u << 0)
#define PRIMARY_INTERRUPT_WINDOW (1u << 2)
#define PRIMARY_HLT (1u << 7)
#define PRIMARY_IO (1u << 24)
#define PRIMARY_MSR_BITMAP (1u << 28)
#define PRIMARY_SECONDARY (1u << 31)
#define SECONDARY_EPT (1u << 1)
#define SECONDARY_UNRESTRICTED (1u << 7)
#define EXIT_HOST_64 (1u << 9)
#define EXIT_ACKNOWLEDGE (1u << 15)
#define EXIT_SAVE_EFER (1u << 20)
#define EXIT_LOAD_EFER (1u << 21)
#define ENTRY_IA32E (1u << 9)
#define ENTRY_LOAD_EFER (1u << 15)
#define INFO_VALID (1u << 31)

static inline u64 vmread(u64 field) { u64 v; asm volatile("vmread %1, %0" : "=r"(v) : "r"(field) : "cc"); return v; }
static inline void vmwrite(u64 field, u64 v)
{
    u8 bad;
    asm volatile("vmwrite %2, %1; setbe %0" : "=q"(bad) : "r"(field), "r"(v) : "cc");
    if (bad)
        die("VMWRITE refused for field", field);
}
#define VMX_POINTER(op) \
    static inline int op(u64 pa) { u8 bad; asm volatile(#op " %1; setbe %0" : "=q"(bad) : "m"(pa) : "cc", "memory"); return bad; }
VMX_POINTER(vmxon)
VMX_POINTER(vmclear)
VMX_POINTER(vmptrld)
static inline void invept_all(void)
{
    struct { u64 eptp, zero; } d = {0, 0};
    asm volatile("invept %0, %1" ::"m"(d), "r"(2ull) : "cc", "memory");
}

/* What the VMCS does not hold, in the order of instruction encodings (slot 4, RSP, unused). */
struct guest_regs { u64 r[16]; };
int vm_run(struct guest_regs *regs, int resume);
void vm_exited(void);

/* One guest hypervisor that is run with an emulated VMX (nested.c). */
struct child {
    struct guest_regs regs;
    u64 ram;                 /* bytes of guest-physical RAM; GPA g lies at RAM_OF_SELF + g */
    u64 *vmcs01, *vmcs02;
    int launched01, launched02;
    u64 injected;            /* ticks already given to the guest */
    int vmx_on, in_l2;
    u64 vmcs12;              /* guest-physical, ~0 for none */
    u64 counts[EXIT_REASONS];
};

u64 *allocate_page(void);
u64 *map_page(u64 *root, u64 gpa, u64 hpa, int large, u64 permissions, u64 *(*allocate)(void));
void *guest_memory(struct child *c, u64 gpa);     /* dies where gpa is outside the guest's RAM */
u64 operand_address(struct child *c);             /* of a VMX instruction's memory operand */
u64 read_register(struct child *c, int n);
void write_register(struct child *c, int n, u64 v);
void advance(void);
void write_controls(u64 field, u32 msr, u32 want);

int nested_instruction(struct child *c, u32 reason);   /* 1: it was a VMX instruction and is done */
int nested_exit(struct child *c, u32 reason);          /* 1: handled or reflected */
void nested_entry_failed(struct child *c);
u64 nested_capability(u32 msr);
#endif
