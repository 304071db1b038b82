# SDM 27.3.2.1, 28.3.1: "load IA32_EFER" on entry, "save IA32_EFER" on exit.
#? field 0x2806 = 0x501
#? expect HLT
#? check field 0x2806 0x500
    mov $0xc0000080, %ecx
    rdmsr
    and $~1, %eax
    wrmsr
    hlt
