"""Generated protobuf and gRPC modules; ``python proto/generate.py`` rewrites all but this file."""
