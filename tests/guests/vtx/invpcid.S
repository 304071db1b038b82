# SDM 26.3, 25.6.2: INVPCID is invalid when not enabled; with "INVLPG exiting" it exits.
#? clear secondary 12
#? expect VMCALL vector=6
#? do rip = start
#? set secondary 12
#? set primary 9
#? expect INVPCID infomask=0xf0000000:0x10000000
start:
    invpcid 0x5000(%rbx), %rcx
    hlt
