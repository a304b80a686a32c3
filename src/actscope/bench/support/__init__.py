"""What the benches share: workloads, servers, engines and the peers that they are compared with."""
