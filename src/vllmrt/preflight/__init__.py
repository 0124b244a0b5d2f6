"""What has to hold before a server starts: its port is free, and no engine is left over from an earlier one."""
