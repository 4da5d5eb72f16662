"""One module a command, each with a ``COMMAND``; they are found here, not listed anywhere.

Importing one must be cheap: what a command needs to run is imported by its run function.
"""
