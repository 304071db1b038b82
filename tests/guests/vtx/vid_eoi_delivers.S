# SDM 30.1.4: after EOI virtualization what is pending below is delivered.
#? set primary 21
#? set secondary 0
#? set secondary 9
#? virtualapic
#? apicaccess 0x500000
#? vapic 0x150 = 0x00000001
#? vapic 0x220 = 0x00000002
#? field 0x0810 = 0xa041
#? expect VMCALL vector=0x41 stack0=after
#? check field 0x0810 0x4100
    sti
    nop
    mov $0x500000, %rbx
    movl $0, 0xb0(%rbx)
after:
    nop
    hlt
