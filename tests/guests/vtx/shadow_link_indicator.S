# SDM 27.3.1.5: the VMCS that the link pointer names is a shadow VMCS exactly under VMCS shadowing.
#? shadow
#? expect ENTRY_GUEST_STATE qual=4
#? set secondary 14
#? expect HLT
    hlt
