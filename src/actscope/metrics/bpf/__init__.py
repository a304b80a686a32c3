"""Programs in the kernel: loaded through libbpf, attached to tracepoints, and their maps read, without a compiler."""
