# SDM 30.6: an external interrupt with another vector exits, and is acknowledged.
#? set pin 7
#? set primary 21
#? set secondary 9
#? set exit 15
#? virtualapic
#? field 0x0002 = 0xf2
#? pidescriptor 0x31
#? interrupt 0xf3
#? expect EXTERNAL_INTERRUPT info=0x800000f3
#? check descriptor 32 1
    hlt
