# SDM 30.1.4: EOI virtualization ends the interrupt in service, and the one below it is in service again.
#? set primary 21
#? set secondary 4
#? set secondary 9
#? virtualapic
#? vapic 0x120 = 0x00000002
#? vapic 0x150 = 0x00000001
#? field 0x0810 = 0xa000
#? expect HLT
#? check vapic 0x120 0x00000002
#? check vapic 0x150 0
#? check field 0x0810 0x4100
#? check vapic 0xa0 0x40
    mov $0x80b, %ecx
    xor %eax, %eax
    xor %edx, %edx
    wrmsr
    hlt
