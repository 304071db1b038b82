# SDM 28.2.4: a VM exit clears the valid bit of the VM-entry interruption information.
#? inject 0x80000306
#? expect VMCALL vector=6 entryinfo_valid=0
    hlt
