"""An L0 hypervisor for unmodified hypervisors, on a processor of its own (Turtles, OSDI 2010)."""

from turtles import compiled as compiled  # before any module that has a compiled form
