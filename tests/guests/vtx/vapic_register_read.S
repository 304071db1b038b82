# SDM 30.4.2: with APIC-register virtualization reads come from the virtual-APIC page, but for those it does not list.
#? set primary 21
#? set secondary 0
#? set secondary 8
#? virtualapic
#? apicaccess 0x500000
#? vapic 0x20 = 0x07000000
#? vapic 0x320 = 0x000400ec
#? expect HLT rax=0x07000000 rdx=0x04
#? expect APIC_ACCESS qual=0x390
#? do skip 6
#? expect APIC_ACCESS qual=0x80
#? do skip 7
#? expect HLT
    mov $0x500000, %rbx
    mov 0x20(%rbx), %eax
    movzbl 0x322(%rbx), %edx
    hlt
    mov 0x390(%rbx), %eax
    mov 0x80(%rbx), %rax
    hlt
