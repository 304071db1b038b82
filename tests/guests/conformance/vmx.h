/* VMX for the conformance guest: fields (SDM appendix B), instructions with their outcome, a fresh VMCS. */
#ifndef VMX_H
#define VMX_H
#include "guest.h"
enum {
    VPID = 0,
    GSEL = 0x800,
    GCS = 0x802,
    GSS = 0x804,
    GLDTR = 0x80c,
    GTR = 0x80e,
    HES = 0xc00,
    HCS = 0xc02,
    HSS = 0xc04,
    HDS = 0xc06,
    HFS = 0xc08,
    HGS = 0xc0a,
    HTR = 0xc0c,
    IO_A = 0x2000,
    IO_B = 0x2002,
    MSRBM = 0x2004,
    EXIT_ST = 0x2006,
    EXIT_LD = 0x2008,
    ENTRY_LD = 0x200a,
    TSCOFF = 0x2010,
    VAPIC = 0x2012,
    APICACC = 0x2014,
    PIDESC = 0x2016,
    EPTP = 0x201a,
    TSCMUL = 0x2032,
    GPA = 0x2400,
    LINK = 0x2800,
    GDEBUGCTL = 0x2802,
    GPAT = 0x2804,
    GEFER = 0x2806,
    PDPTE0 = 0x280a,
    HPAT = 0x2c00,
    HEFER = 0x2c02,
    PIN = 0x4000,
    PRI = 0x4002,
    EXCBM = 0x4004,
    PFMASK = 0x4006,
    PFMATCH = 0x4008,
    CR3COUNT = 0x400a,
    EXITC = 0x400c,
    EXIT_STN = 0x400e,
    EXIT_LDN = 0x4010,
    ENTRYC = 0x4012,
    ENTRY_LDN = 0x4014,
    EINFO = 0x4016,
    EERR = 0x4018,
    ELEN = 0x401a,
    TPRTH = 0x401c,
    SEC = 0x401e,
    IERR = 0x4400,
    REASON = 0x4402,
    XINFO = 0x4404,
    XERR = 0x4406,
    IDTINFO = 0x4408,
    IDTERR = 0x440a,
    XLEN = 0x440c,
    XIINFO = 0x440e,
    GLIMIT = 0x4800,
    GAR = 0x4814,
    INTRB = 0x4824,
    ACTV = 0x4826,
    GSYSCS = 0x482a,
    PTIMER = 0x482e,
    HSYSCS = 0x4c00,
    CR0M = 0x6000,
    CR4M = 0x6002,
    CR0S = 0x6004,
    CR4S = 0x6006,
    CR3T0 = 0x6008,
    QUAL = 0x6400,
    LINEAR = 0x640a,
    GCR0 = 0x6800,
    GCR3 = 0x6802,
    GCR4 = 0x6804,
    GBASE = 0x6806,
    GGDT = 0x6816,
    GIDT = 0x6818,
    GDR7 = 0x681a,
    GRSP = 0x681c,
    GRIP = 0x681e,
    GFLAGS = 0x6820,
    GPDBG = 0x6822,
    GSYSESP = 0x6824,
    GSYSEIP = 0x6826,
    HCR0 = 0x6c00,
    HCR3 = 0x6c02,
    HCR4 = 0x6c04,
    HFSB = 0x6c06,
    HGSB = 0x6c08,
    HTRB = 0x6c0a,
    HGDT = 0x6c0c,
    HIDT = 0x6c0e,
    HSYSESP = 0x6c10,
    HSYSEIP = 0x6c12,
    HRSP = 0x6c14,
    HRIP = 0x6c16,
};
enum {
    X_EXC,
    X_EXTINT,
    X_TRIPLE,
    X_INTWIN = 7,
    X_NMIWIN,
    X_TASK,
    X_CPUID,
    X_HLT = 12,
    X_INVD,
    X_INVLPG,
    X_RDPMC,
    X_RDTSC,
    X_VMCALL = 18,
    X_CR = 28,
    X_DR,
    X_IO,
    X_RDMSR,
    X_WRMSR,
    X_BADGUEST,
    X_BADMSR,
    X_MWAIT = 36,
    X_MTF,
    X_MONITOR = 39,
    X_PAUSE,
    X_TPR = 43,
    X_APIC,
    X_GDTR = 46,
    X_LDTR,
    X_EPTV,
    X_EPTM,
    X_INVEPT,
    X_RDTSCP,
    X_PTIMER,
    X_INVVPID,
    X_WBINVD,
    X_XSETBV,
    X_APICWRITE,
    X_RDRAND,
    X_INVPCID,
    X_RDSEED = 61,
    X_FAILED = -1
};
#define VALID (1ull << 31)
#define VMFAIL_INVALID 1
#define VMFAIL_VALID 0x40

static inline u64 vmread(u64 f)
{
    u64 v = 0;
    asm volatile("vmread %1, %0" : "=r"(v) : "r"(f) : "cc");
    return v;
}
/* The outcome of an instruction: 0, VMFAIL_INVALID or VMFAIL_VALID. */
#define OUTCOME(text, ...)                                                                                           \
    ({                                                                                                               \
        u64 fl_;                                                                                                     \
        asm volatile("pushq $0x8d5; popfq; " text "; pushfq; popq %0" : "=&r"(fl_) : __VA_ARGS__ : "cc", "memory");  \
        int r_ = (int)(fl_ & 0x8d5);                                                                                 \
        r_ & 1 ? VMFAIL_INVALID | (r_ & ~1) : r_;                                                                    \
    })
static inline int do_vmwrite(u64 f, u64 v)
{ return OUTCOME("vmwrite %2, %1", "r"(f), "r"(v)); }
static inline int do_vmread(u64 f, u64 *out)
{
    u64 v = 0;
    int r;
    u64 fl;
    asm volatile("pushq $0x8d5; popfq; vmread %2, %1; pushfq; popq %0" : "=&r"(fl), "+&r"(v) : "r"(f) : "cc");
    r = (int)(fl & 0x8d5);
    *out = v;
    return r;
}
static inline void vmwrite(u64 f, u64 v)
{ asm volatile("vmwrite %1, %0" ::"r"(f), "r"(v) : "cc"); }
static inline int vmxon(u64 pa)
{ return OUTCOME("vmxon %1", "m"(pa)); }
static inline int vmclear(u64 pa)
{ return OUTCOME("vmclear %1", "m"(pa)); }
static inline int vmptrld(u64 pa)
{ return OUTCOME("vmptrld %1", "m"(pa)); }
static inline int vmptrst(u64 *pa)
{ return OUTCOME("vmptrst %1", "m"(*pa)); }
static inline int vmxoff(void)
{ return OUTCOME("vmxoff", "i"(0)); }
struct descriptor {
    u64 a, b;
};
static inline int invept(u64 kind, u64 eptp, u64 b)
{
    struct descriptor d = {eptp, b};
    return OUTCOME("invept %1, %2", "m"(d), "r"(kind));
}
static inline int invvpid(u64 kind, u64 vpid, u64 linear)
{
    struct descriptor d = {vpid, linear};
    return OUTCOME("invvpid %1, %2", "m"(d), "r"(kind));
}

struct regs {
    u64 rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15;
};
extern struct regs gr;
int vm_run(struct regs *, int resume);
extern u8 vm_exited[];
extern u64 *vmxon_area, *vmcs;
extern u32 revision;
extern int launched;
void vmx_enable(void); /* CR4.VMXE, CR0, VMXON */
void vmx_disable(void);
void fresh(void (*guest)(void));              /* a new VMCS whose guest runs this function at this machine's state */
void guest_is(void (*guest)(void));           /* only RIP and RSP */
int enter(void);                              /* basic exit reason; X_FAILED - instruction error where it failed */
void skip(void);                              /* moves RIP behind the instruction that exited */
int controls(u64 field, u32 set, u32 clear);  /* 0 where the processor does not offer what is asked for */
u64 identity_ept(int level);                  /* an EPT pointer, 1:1 in pages of 4 KiB (1), 2 MiB (2) or 1 GiB (3) */
u64 *ept_entry(u64 eptp, u64 gpa, int level); /* splits on the way */
static inline int offered(u32 bit)
{ return (int)(rdmsr(0x48b) >> 32 & bit ? 1 : 0); } /* of the secondary controls */
static inline void vmcall(void)
{ asm volatile("vmcall" ::: "memory"); }
extern volatile u64 shared_[8];
#endif
