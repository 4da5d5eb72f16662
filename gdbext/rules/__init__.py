"""Rules over batches of events: matched exits in, findings out. Pure: no debugger, no clock, no terminal."""
