"""A server that goes on when the command that started it has ended: one for each port."""
