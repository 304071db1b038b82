/* Exits and faults of a guest at CPL 3: which comes first (SDM 26.1.1, 26.1.2, 26.1.3). */
#include "vmx.h"

static u8 table[16];
#define U(name, ...)                                                                                                 \
    static void u_##name(void)                                                                                       \
    {                                                                                                                \
        asm volatile(__VA_ARGS__);                                                                                   \
        vmcall();                                                                                                    \
    }
U(hlt, "hlt")
U(invlpg, "invlpg 0x12345678")
U(rdpmc, "rdpmc" ::"c"(0) : "rax", "rdx")
U(rdtsc, "rdtsc" :: : "rax", "rdx")
U(cr3l, "mov %%rax, %%cr3" ::"a"(0))
U(cr3s, "mov %%cr3, %%rax" :: : "rax")
U(cr8s, "mov %%cr8, %%rax" :: : "rax")
U(pause, "pause")
U(cpuid_, "cpuid" ::"a"(0), "c"(0) : "rbx", "rdx")
U(invd, "invd")
U(wbinvd, "wbinvd")
U(xsetbv, "xsetbv" ::"c"(0), "a"(7), "d"(0))
U(sgdt, "sgdt %0" : "=m"(table))
U(lgdt, "lgdt %0" ::"m"(table))
U(sldt, "sldt %%ax" :: : "rax")
U(lldt, "lldt %%ax" ::"a"(0))
U(rdrand, "rdrand %%rax" :: : "rax")
U(movdr, "mov %%dr7, %%rcx" :: : "rcx")
U(movdr4, "mov %%rcx, %%dr4" ::"c"(0ull))
U(vmxoff, "vmxoff")
U(vmread, "vmread %%rax, %%rcx" ::"a"(0x4402) : "rcx")
U(vmlaunch, "vmlaunch")
U(wrmsr, "wrmsr" ::"c"(0x12345678), "a"(0), "d"(0))
U(rdmsr, "rdmsr" ::"c"(0x12345678) : "rax", "rdx")
U(clts, "clts")
U(lmsw, "lmsw %%ax" ::"a"(0))
U(smsw, "smsw %%ax" :: : "rax")
U(in, "inb $0x80, %%al" :: : "rax")
U(outs, "outsb" ::"d"(0x80), "S"(table) : "memory")
U(cli, "cli")
U(call, "nop")
U(invept, "invept %0, %1" ::"m"(table), "r"(2ull))
U(invpcid, "invpcid %0, %1" ::"m"(table), "r"(2ull))

static void at_cpl3(void (*f)(void))
{
    fresh(f);
    vmwrite(GCS, 0x2b);
    vmwrite(GAR + 2, 0xa0fb);
    vmwrite(GSS, 0x23);
    vmwrite(GAR + 4, 0xc0f3);
    for (u64 s = 0; s < 6; s++)
        if (s != 1 && s != 2) {
            vmwrite(GSEL + 2 * s, 0x23);
            vmwrite(GAR + 2 * s, 0xc0f3);
        }
    vmwrite(EXCBM, 1 << GP | 1 << UD | 1 << PF);
    vmwrite(GCR4, vmread(GCR4) | 8); /* DE: DR4 and DR5 do not exist */
    controls(PRI,
             1 << 7 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 15 | 1 << 16 | 1 << 19 | 1 << 20 | 1 << 23 |
                 1 << 24 | 1 << 29 | 1 << 30,
             0);
    controls(SEC, 1 << 2 | 1 << 3 | 1 << 6 | 1 << 11 | 1 << 12 | 1 << 16, 0);
}
TEST(user)
{
    vmx_enable();
    WRITE_CR(4, READ_CR(4) | 1 << 18);
    static const struct {
        void (*f)(void);
        int reason, vector;
    } list[] = {
        {u_hlt, X_EXC, GP},      {u_invlpg, X_EXC, GP}, {u_rdpmc, X_EXC, GP},  {u_rdtsc, X_RDTSC, 0},
        {u_cr3l, X_EXC, GP},     {u_cr3s, X_EXC, GP},   {u_cr8s, X_EXC, GP},   {u_pause, X_PAUSE, 0},
        {u_cpuid_, X_CPUID, 0},  {u_invd, X_EXC, GP},   {u_wbinvd, X_EXC, GP}, {u_xsetbv, X_EXC, GP},
        {u_sgdt, X_GDTR, 0},     {u_lgdt, X_EXC, GP},   {u_sldt, X_LDTR, 0},   {u_lldt, X_EXC, GP},
        {u_rdrand, X_RDRAND, 0}, {u_movdr, X_DR, 0},    {u_movdr4, X_DR, 0},   {u_vmxoff, 26, 0},
        {u_vmread, 23, 0},       {u_vmlaunch, 20, 0},   {u_wrmsr, X_EXC, GP},  {u_rdmsr, X_EXC, GP},
        {u_clts, X_EXC, GP},     {u_lmsw, X_EXC, GP},   {u_smsw, X_VMCALL, 0}, {u_in, X_EXC, GP},
        {u_outs, X_EXC, GP},     {u_cli, X_EXC, GP},    {u_call, X_VMCALL, 0}, {u_invept, X_INVEPT, 0},
        {u_invpcid, X_EXC, GP},
    };
    for (unsigned i = 0; i < sizeof list / sizeof *list; i++) {
        if (list[i].reason == X_INVEPT && !offered(2))
            continue;
        if (list[i].f == u_invpcid && !offered(1 << 12))
            continue;
        at_cpl3(list[i].f);
        CHECK_AT(i, enter(), list[i].reason);
        if (list[i].reason == X_EXC)
            CHECK_AT(i, vmread(XINFO), VALID | 1 << 11 | 3 << 8 | (u64)list[i].vector);
    }
    /* IOPL and the map in the TSS let it at the port: then it exits */
    at_cpl3(u_in);
    vmwrite(GFLAGS, 0x3002);
    CHECK(enter(), X_IO);
    CHECK(vmread(QUAL), 0x800048);
    at_cpl3(u_outs);
    vmwrite(GFLAGS, 0x3002);
    CHECK(enter(), X_IO);
    CHECK(vmread(QUAL), 0x800010);
    CHECK(vmread(LINEAR), (u64)table);
    CHECK(vmread(XIINFO) & 0x38380, 3 << 15 | 2 << 7);
    /* without the exit the fault of the register number comes */
    at_cpl3(u_movdr4);
    controls(PRI, 0, 1 << 23);
    CHECK(enter(), X_EXC);
    CHECK(vmread(XINFO) & 0xff, UD);
    vmx_disable();
}
