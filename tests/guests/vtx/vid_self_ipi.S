# SDM 30.1.5: WRMSR of the self-IPI MSR requests a virtual interrupt, without an exit.
#? set primary 21
#? set secondary 4
#? set secondary 9
#? virtualapic
#? expect VMCALL vector=0x51 stack0=after
    sti
    mov $0x83f, %ecx
    mov $0x51, %eax
    xor %edx, %edx
    wrmsr
after:
    hlt
