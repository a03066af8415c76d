"""A server for development: TF Serving's REST and gRPC interfaces over what Pusher wrote.

Where TF Serving itself can be had (its binary, or Docker), `safelight serve` starts that instead.
"""
