# SDM 25.10, 26.1.3: VMCS shadowing: VMREAD of a field whose bitmap bit is 0 reads the shadow VMCS.
#? set secondary 14
#? shadow
#? shadowfield 0x681e = 0x12345678
#? vmreadbitmap 0x6820
#? expect HLT rbx=0x12345678
#? expect VMREAD
#? expect HLT
    mov $0x681e, %eax
    vmread %rax, %rbx
    hlt
    mov $0x6820, %eax
    vmread %rax, %rbx
    hlt
