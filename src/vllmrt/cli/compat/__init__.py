"""The three script names of the reference README, with its arguments, variables, defaults and exit codes.

They do with the stages what ``vllmrt preflight``, ``resolve`` and ``serve`` do. What the reference does not say is as
there.
"""
