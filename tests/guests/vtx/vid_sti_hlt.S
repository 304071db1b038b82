# SDM 30.2.2: virtual-interrupt delivery is blocked by STI for one instruction, here HLT, which it then ends.
#? set primary 21
#? clear primary 7
#? set secondary 9
#? virtualapic
#? vapic 0x220 = 0x00000002
#? field 0x0810 = 0x41
#? expect VMCALL vector=0x41 stack0=after
    sti
    hlt
after:
    nop
