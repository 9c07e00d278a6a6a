"""Between the server's process and the engine's: sockets, child processes, exit codes. No torch: the server imports it too."""
