"""What a server is watched with: dashboards for Grafana, rules and alerts for Prometheus, written from the metrics there are."""
