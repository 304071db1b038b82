# SDM 25.10, 26.1.3: VMWRITE to the shadow VMCS unless the VMWRITE bitmap has the field's bit; VMREAD has its own bitmap.
#? set secondary 14
#? shadow
#? shadowfield 0x6820 = 0x202
#? vmwritebitmap 0x6820
#? expect VMWRITE
#? expect HLT rbx=0x202
#? expect HLT
#? check shadow 0x681e 0x1234
    mov $0x6820, %eax
    vmwrite %rbx, %rax
    vmread %rax, %rbx
    hlt
    mov $0x681e, %eax
    mov $0x1234, %ebx
    vmwrite %rbx, %rax
    hlt
