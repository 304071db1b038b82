# SDM 27.3.2.1, 28.3.1: "load IA32_PAT" on entry, "save IA32_PAT" on exit.
#? set entry 14
#? field 0x2804 = 0x0007010600070406
#? expect HLT rax=0x00070406
#? check field 0x2804 0x0007010600070404
    mov $0x277, %ecx
    rdmsr
    mov %eax, %ebx
    xor $2, %eax
    wrmsr
    mov %ebx, %eax
    hlt
