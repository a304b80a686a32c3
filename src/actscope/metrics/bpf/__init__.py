"""Programs in the kernel: loaded through libbpf, attached to tracepoints, and their maps read. No compiler is needed to run them."""
