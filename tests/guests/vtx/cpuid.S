# SDM 26.1.2: CPUID causes a VM exit unconditionally.
#? expect CPUID length=2 rax=7
#? expect HLT length=1
    mov $7, %eax
    cpuid
    hlt
