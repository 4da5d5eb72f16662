"""The GDB extension: the commands under ``ctx`` and the collector behind them. The only package that imports gdb."""
