# Protected mode without paging runs under "unrestricted guest".
#? mode protected
#? expect CPUID length=2
#? expect HLT rax=0xfffffffe
    .code32
    cpuid
    mov $-1, %eax
    add $-1, %eax
    hlt
