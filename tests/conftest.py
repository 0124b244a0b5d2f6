"""The tests begin as if typed into a terminal.

What ``nohup`` starts, or a shell in the background, is deaf to some signals, and so is all that it starts.
"""

import signal

from hypothesis import settings

settings.register_profile("without a clock", deadline=None)  # the machine may be busy
settings.load_profile("without a clock")

for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGQUIT, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
