# SDM 27.7.6: NMI-window exiting: exits before the first instruction where NMIs are not blocked.
#? set pin 3
#? set pin 5
#? set primary 22
#? expect NMI_WINDOW
#? clear primary 22
#? expect HLT
    nop
    hlt
