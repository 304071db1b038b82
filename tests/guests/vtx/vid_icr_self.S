# SDM 30.4.3.2: a write of ICR that sends a fixed interrupt to itself is virtualized; any other causes an APIC-write exit.
#? set primary 21
#? set secondary 0
#? set secondary 9
#? virtualapic
#? apicaccess 0x500000
#? expect VMCALL vector=0x61 stack0=after
#? do rip = after
#? field 0x6820 |= 2
#? expect APIC_WRITE qual=0x300 rip=behind
#? check vapic 0x300 0x000c0062
#? expect HLT
    sti
    mov $0x500000, %rbx
    movl $0x40061, 0x300(%rbx)
after:
    movl $0xc0062, 0x300(%rbx)
behind:
    hlt
