# SDM 30.2.2: virtual-interrupt delivery wakes a processor from the HLT state.
#? set primary 21
#? clear primary 7
#? set secondary 9
#? virtualapic
#? vapic 0x220 = 0x00000002
#? field 0x0810 = 0x41
#? field 0x4826 = 1
#? field 0x6820 |= 0x200
#? expect VMCALL vector=0x41 activity=0
    hlt
