# SDM 30.5: with "virtualize x2APIC mode", RDMSR and WRMSR of 808H reach the virtual TPR.
#? set primary 21
#? set secondary 4
#? set primary 28
#? virtualapic
#? expect HLT rax=0x20
#? check vapic 0x80 0x20
    mov $0x808, %ecx
    mov $0x20, %eax
    xor %edx, %edx
    wrmsr
    xor %eax, %eax
    rdmsr
    hlt
