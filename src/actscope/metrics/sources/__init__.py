"""Where counts come from: programs in the kernel, /proc and sysfs."""
