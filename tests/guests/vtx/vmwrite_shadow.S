# SDM 26.1.3: a shadowed VMWRITE changes the shadow VMCS and sets its written mask.
#? set secondary 14
#? shadow
#? expect HLT
#? check shadow 0x681e 0xabcd
    mov $0x681e, %eax
    mov $0xabcd, %ebx
    vmwrite %rbx, %rax
    hlt
