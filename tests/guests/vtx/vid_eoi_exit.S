# SDM 30.1.4: EOI of a vector in the EOI-exit bitmap exits behind the instruction, with the vector as qualification.
#? set primary 21
#? set secondary 4
#? set secondary 9
#? virtualapic
#? vapic 0x150 = 0x00000001
#? field 0x0810 = 0xa000
#? eoiexit 0xa0
#? expect VIRTUALIZED_EOI qual=0xa0 rip=after
#? check field 0x0810 0
#? expect HLT
    mov $0x80b, %ecx
    xor %eax, %eax
    xor %edx, %edx
    wrmsr
after:
    hlt
