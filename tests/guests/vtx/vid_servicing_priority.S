# SDM 30.1.3: VPPR is the class of the interrupt in service where that is above VTPR.
#? set primary 21
#? set secondary 9
#? virtualapic 0x20
#? vapic 0x130 = 0x00000001
#? vapic 0x230 = 0x00008000
#? field 0x0810 = 0x606f
#? expect HLT
#? check vapic 0xa0 0x60
    sti
    nop
    hlt
