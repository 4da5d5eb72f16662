"""Recorded sessions: event rows as an Arrow IPC stream, and all that a replay needs to judge them as the live run did.

A recording is a stream that any Arrow reader opens: one column per field of the event row, and the :class:`Header`
in the schema's metadata. Each batch of events is followed by an empty batch whose own metadata is a :class:`Mark`: a
checksum of everything since the mark before it, the guest memory and the names that the rules asked for meanwhile, and
at the end of a finished recording the result of the run.
"""
