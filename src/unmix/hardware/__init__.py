"""Hardware detection: device, precision, memory, and threads."""
