"""HTTP processes in front of one server: they have the clients' connections, the server has everything else."""
