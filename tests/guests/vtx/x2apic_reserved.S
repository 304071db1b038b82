# SDM 30.5: WRMSR of the virtual TPR and EOI with reserved bits is #GP(0); without APIC-register virtualization so is RDMSR.
#? set primary 21
#? set secondary 4
#? set secondary 9
#? virtualapic
#? expect VMCALL vector=13
#? do skiphandler 2
#? expect VMCALL vector=13
#? do skiphandler 2
#? expect VMCALL vector=13
#? do skiphandler 2
#? expect HLT
    mov $0x808, %ecx
    mov $0x100, %eax
    xor %edx, %edx
    wrmsr
    mov $0x80b, %ecx
    mov $1, %eax
    wrmsr
    mov $0x802, %ecx
    rdmsr
    hlt
