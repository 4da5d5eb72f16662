"""Where events come from: the probe, a gdbstub, a recording; one small interface."""
