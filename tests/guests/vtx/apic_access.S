# SDM 30.4, table 28-6: accesses to the APIC-access page exit with offset and access type.
#? set primary 21
#? set secondary 0
#? virtualapic
#? apicaccess 0x500000
#? expect APIC_ACCESS qual=0x30
#? do skip 3
#? expect APIC_ACCESS qual=0x10b0
#? do skip 6
#? expect HLT
    mov $0x500000, %rbx
    mov 0x30(%rbx), %eax
    mov %eax, 0xb0(%rbx)
    hlt
