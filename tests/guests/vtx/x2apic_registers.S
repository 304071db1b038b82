# SDM 30.5: with APIC-register virtualization RDMSR of x2APIC registers reads the virtual-APIC page.
#? set primary 21
#? set secondary 4
#? set secondary 8
#? virtualapic
#? vapic 0x300 = 0x000c0062
#? vapic 0x304 = 0x00000003
#? expect HLT rax=0x000c0062 rdx=3
    mov $0x830, %ecx
    rdmsr
    hlt
