# SDM 30.2.2: a virtual interrupt in RVI above the priority is delivered through the IDT once RFLAGS.IF is 1.
#? set primary 21
#? set secondary 9
#? virtualapic
#? vapic 0x220 = 0x00000002
#? field 0x0810 = 0x41
#? expect VMCALL vector=0x41 stack0=after
#? check vapic 0x120 0x00000002
#? check vapic 0x220 0
#? check vapic 0xa0 0x40
#? check field 0x0810 0x4100
    nop
    sti
    nop
after:
    hlt
