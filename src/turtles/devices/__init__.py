"""Devices: what a PC has round its processor, one file each, named as their datasheets name them.

A device is an ordinary object with `read(offset, width)` and `write(offset, width, value)`. Interrupt lines,
clocks, timers, guest memory and sinks are injected; it knows neither the bus it sits on, nor L0, nor silicon.
"""
