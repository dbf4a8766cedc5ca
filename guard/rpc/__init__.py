"""The gRPC faces of the guard: wire formats, status codes and servicers; no decisions are made here."""
