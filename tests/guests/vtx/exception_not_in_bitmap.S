# SDM 26.2: an exception whose bit is clear goes through the guest's IDT.
#? expect VMCALL vector=6
    ud2
