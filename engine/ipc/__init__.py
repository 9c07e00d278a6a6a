"""Between the server's process, the engine's and its ranks': codec, sockets, child processes, exit codes. No torch: the server
imports it too."""
