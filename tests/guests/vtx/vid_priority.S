# SDM 30.2.1: a virtual interrupt is not recognized unless its priority class is above VPPR.
#? set primary 21
#? set secondary 9
#? virtualapic 0x45
#? vapic 0x220 = 0x00000002
#? field 0x0810 = 0x41
#? expect HLT
#? check vapic 0xa0 0x45
#? expect VMCALL vector=0x41 stack0=after
    sti
    nop
    hlt
    mov $3, %eax
    mov %rax, %cr8
after:
    hlt
