/* Instructions that exit, and those that are undefined (SDM 26.1). */
#include "vmx.h"

static void no_msr_exits(void)
{
    controls(PRI, 1 << 28, 0);
    vmwrite(MSRBM, (u64)page());
}
#define I(name, ...)                                                                                                 \
    static void i_##name(void)                                                                                       \
    {                                                                                                                \
        asm volatile(__VA_ARGS__);                                                                                   \
        vmcall();                                                                                                    \
    }
static u8 table[16];
I(hlt, "hlt")
I(invlpg, "invlpg 0x12345678")
I(rdpmc, "rdpmc" ::"c"(0) : "rax", "rdx")
I(rdtsc, "rdtsc" :: : "rax", "rdx")
I(cr3l, "mov %%cr3, %%rax; mov %%rax, %%cr3" :: : "rax")
I(cr3s, "mov %%cr3, %%rax" :: : "rax")
I(cr8l, "xor %%eax, %%eax; mov %%rax, %%cr8" :: : "rax") I(cr8s, "mov %%cr8, %%rax" :: : "rax") I(
    monitor, "monitor" ::"a"(table), "c"(0),
    "d"(0)) I(mwait, "mwait" ::"a"(0), "c"(0)) I(pause, "pause") I(cpuid_, "cpuid" ::"a"(0), "c"(0) : "rbx", "rdx")
    I(invd, "invd") I(wbinvd, "wbinvd") I(xsetbv, "xsetbv" ::"c"(0), "a"(7), "d"(0)) I(sgdt, "sgdt %0" : "=m"(table))
        I(lgdt, "sgdt %0; lgdt %0" : "+m"(table)) I(sidt, "sidt %0" : "=m"(table)) I(lidt,
                                                                                     "sidt %0; lidt %0" : "+m"(table))
            I(sldt, "sldt %%ax" :: : "rax") I(lldt, "lldt %%ax" ::"a"(0)) I(str, "str %%ax" :: : "rax")
                I(ltr, "movl $0x58, %%eax; ltr %%ax" :: : "rax") I(rdrand, "rdrand %%rax" :: : "rax")
                    I(rdseed, "rdseed %%rax" :: : "rax") I(rdtscp, "rdtscp" :: : "rax", "rcx", "rdx")
                        I(invpcid, "invpcid %0, %1" ::"m"(table), "r"(2ull)) I(movdr, "mov %%dr7, %%rcx" :: : "rcx")
                            I(movdr2, "mov %%rcx, %%dr7" ::"c"(0x400ull))
                                I(getsec, "xor %%eax, %%eax; .byte 0x0f, 0x37" :: : "rax",
                                  "rbx") I(vmmcall,
                                           ".byte 0x0f, 1, 0xd9") I(rdpid, ".byte 0xf3, 0x0f, 0xc7, 0xf8" :: : "rax")
                                    I(invept_, "invept %0, %1" ::"m"(table), "r"(2ull)) I(vmxoff_, "vmxoff")
                                        I(vmread_, "vmread %%rax, %%rcx" ::"a"(0x4402) : "rcx") I(ud2, "ud2")
                                            I(rsm, "rsm") I(vmfunc, "vmfunc" ::"a"(0), "c"(0))
                                                I(xsaves, "xsaves %0" : "=m"(*(char (*)[4096])0x600000) : "a"(0),
                                                  "d"(0)) I(pushes, "wrmsr" ::"c"(0x12345678), "a"(0), "d"(0))
                                                    I(rdmsr_, "rdmsr" ::"c"(0x12345678) : "rax", "rdx")
                                                        I(enclu,
                                                          "xor %%eax, %%eax; .byte 0x0f, 0x01, 0xd7" :: : "rax",
                                                          "rbx")

                                                            static void intercept(const char *name, void (*f)(void),
                                                                                  u64 field, u32 bit, int reason,
                                                                                  u64 qual, u64 info, u64 infomask)
{
    fresh(f);
    no_msr_exits();
    int can = !bit || controls(field, bit, 0);
    if (!can) {
        printf("  %s: not offered\n", name);
        return;
    }
    if (field == SEC && (bit & 1 << 3))
        ;
    controls(SEC, 1 << 3 | 1 << 12 | 1 << 20, 0);
    if (bit)
        controls(field, bit, 0);
    int r = enter();
    if (r != reason)
        printf("  %s: reason %u info %x rip +%u\n", name, (u64)r, vmread(XINFO), vmread(GRIP) - (u64)f);
    CHECK(r, reason);
    if (r != reason)
        return;
    CHECK_AT(reason, vmread(QUAL), qual);
    if (infomask)
        CHECK_AT(reason, vmread(XIINFO) & infomask, info);
}
TEST(insns)
{
    vmx_enable();
    intercept("hlt", i_hlt, PRI, 1 << 7, X_HLT, 0, 0, 0);
    intercept("invlpg", i_invlpg, PRI, 1 << 9, X_INVLPG, 0x12345678, 0, 0);
    intercept("rdpmc", i_rdpmc, PRI, 1 << 11, X_RDPMC, 0, 0, 0);
    intercept("rdtsc", i_rdtsc, PRI, 1 << 12, X_RDTSC, 0, 0, 0);
    intercept("cr3 load", i_cr3l, PRI, 1 << 15, X_CR, 3, 0, 0);
    intercept("cr3 store", i_cr3s, PRI, 1 << 16, X_CR, 0x13, 0, 0);
    intercept("cr8 load", i_cr8l, PRI, 1 << 19, X_CR, 8, 0, 0);
    intercept("cr8 store", i_cr8s, PRI, 1 << 20, X_CR, 0x18, 0, 0);
    intercept("monitor", i_monitor, PRI, 1 << 29, X_MONITOR, 0, 0, 0);
    intercept("mwait", i_mwait, PRI, 1 << 10, X_MWAIT, 0, 0, 0);
    intercept("pause", i_pause, PRI, 1 << 30, X_PAUSE, 0, 0, 0);
    intercept("cpuid", i_cpuid_, PRI, 0, X_CPUID, 0, 0, 0);
    intercept("invd", i_invd, PRI, 0, X_INVD, 0, 0, 0);
    intercept("wbinvd", i_wbinvd, SEC, 1 << 6, X_WBINVD, 0, 0, 0);
    WRITE_CR(4, READ_CR(4) | 1 << 18);
    intercept("xsetbv", i_xsetbv, PRI, 0, X_XSETBV, 0, 0, 0);
    intercept("sgdt", i_sgdt, SEC, 1 << 2, X_GDTR, (u64)table, 0x0, 0x30000000);
    intercept("lgdt", i_lgdt, SEC, 1 << 2, X_GDTR, (u64)table, 0, 0);
    intercept("sidt", i_sidt, SEC, 1 << 2, X_GDTR, (u64)table, 0x10000000, 0x30000000);
    intercept("sldt", i_sldt, SEC, 1 << 2, X_LDTR, 0, 0x00000400, 0x30000478);
    intercept("lldt", i_lldt, SEC, 1 << 2, X_LDTR, 0, 0x20000400, 0x30000478);
    intercept("str", i_str, SEC, 1 << 2, X_LDTR, 0, 0x10000400, 0x30000478);
    intercept("rdrand", i_rdrand, SEC, 1 << 11, X_RDRAND, 0, 0x1000, 0x1878);
    intercept("rdseed", i_rdseed, SEC, 1 << 16, X_RDSEED, 0, 0x1000, 0x1878);
    intercept("rdtscp", i_rdtscp, PRI, 1 << 12, X_RDTSCP, 0, 0, 0);
    if (offered(1 << 12))
        intercept("invpcid", i_invpcid, PRI, 1 << 9, X_INVPCID, (u64)table - 0 * 1, 0, 0);
    intercept("mov dr", i_movdr, PRI, 1 << 23, X_DR, 0x117, 0, 0);
    intercept("mov dr", i_movdr2, PRI, 1 << 23, X_DR, 0x107, 0, 0);
    if (offered(2))
        intercept("invept", i_invept_, PRI, 0, X_INVEPT, (u64)table, 0x20, 0);
    intercept("vmxoff", i_vmxoff_, PRI, 0, 26, 0, 0, 0);
    intercept("vmread", i_vmread_, PRI, 0, 23, 0, 1 << 3 | 1 << 10 | 0ull << 28, 0xf0000478);
    intercept("wrmsr", i_pushes, PRI, 0, X_WRMSR, 0, 0, 0);
    intercept("rdmsr", i_rdmsr_, PRI, 0, X_RDMSR, 0, 0, 0);
    static void (*const undefined[])(void) = {i_ud2, i_vmmcall, i_getsec, i_rsm, i_vmfunc, i_enclu};
    for (int i = 0; i < 6; i++) {
        fresh(undefined[i]);
        vmwrite(EXCBM, 1 << UD);
        CHECK_AT(i, enter(), X_EXC);
        CHECK_AT(i, vmread(XINFO), VALID | 3 << 8 | UD);
    }
    fresh(i_rdtscp);
    vmwrite(EXCBM, 1 << UD);
    CHECK(enter(), X_EXC);
    CHECK(vmread(XINFO) & 0xff, UD);
    fresh(i_rdpid);
    vmwrite(EXCBM, 1 << UD);
    CHECK(enter(), X_EXC);
    CHECK(vmread(XINFO) & 0xff, UD);
    fresh(i_invpcid);
    vmwrite(EXCBM, 1 << UD);
    CHECK(enter(), X_EXC);
    CHECK(vmread(XINFO) & 0xff, UD);
    fresh(i_xsaves);
    vmwrite(EXCBM, 1 << UD);
    CHECK(enter(), X_EXC);
    CHECK(vmread(XINFO) & 0xff, UD);
    /* not intercepted */
    static void (*const plain[])(void) = {i_rdtsc, i_cr3l, i_cr3s, i_cr8l, i_cr8s, i_pause, i_wbinvd, i_sgdt,
                                          i_lgdt,  i_sidt, i_lidt, i_sldt, i_lldt, i_str,   i_rdrand, i_invlpg};
    for (int i = 0; i < 16; i++) {
        fresh(plain[i]);
        vmwrite(EXCBM, ~0u);
        CHECK_AT(i, enter(), X_VMCALL);
    }
    vmx_disable();
}
