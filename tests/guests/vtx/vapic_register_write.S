# SDM 30.4.3.2: a write to a register of the virtual-APIC page is done, and causes an APIC-write exit behind it.
#? set primary 21
#? set secondary 0
#? set secondary 8
#? virtualapic
#? apicaccess 0x500000
#? expect APIC_WRITE qual=0xf0 rip=one
#? check vapic 0xf0 0x1ff
#? expect APIC_WRITE qual=0xb0 rip=two
#? expect HLT
#? check vapic 0x310 0x12000000
#? expect APIC_ACCESS qual=0x1030
#? do skip 7
#? expect HLT
    mov $0x500000, %rbx
    movl $0x1ff, 0xf0(%rbx)
one:
    movl $0, 0xb0(%rbx)
two:
    movl $0x12345678, 0x310(%rbx)
    hlt
    movl $0, 0x30(%rbx)
    hlt
